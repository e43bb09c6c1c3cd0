"""Triton kernels of weighted_triplet for few rows, one launch forward and one backward; and what streamed ones share.

Forward, the last program of each block of anchors takes their softmaxes, see ``_split``, and the last of those adds up
the losses. Distances are kept, as on the CPU: backward, a program has the weights of its rows against all others from
them, and waits for nobody.
"""

from torch import Tensor

from vifast.kernels._lang import tl, triton
from vifast.kernels._reduction import share_of_row
from vifast.kernels._small import SMALL, counters, last_program, reduce_rows
from vifast.kernels._split import pull_launch, pull_rows, split_launch, store_products, sum_products
from vifast.kernels._tile import softmax_update


@triton.jit
def finish(
    m_pos, z_pos, t_pos, m_neg, z_neg, t_neg, loss_ptr, saved_ptr, row, n, STABLE: tl.constexpr, EPS_: tl.constexpr
):  # fmt: skip
    """Losses of anchors and what their backward needs, stored, from the softmaxes of both sides."""
    if not STABLE:
        z_pos += EPS_
        z_neg += EPS_
    idle = z_neg == 0.0
    inv_pos = 1.0 / z_pos
    inv_neg = tl.where(idle, 0.0, 1.0 / tl.where(idle, 1.0, z_neg))
    p = t_pos * inv_pos
    q = t_neg * inv_neg
    gap = p - q
    tail = tl.exp(-tl.abs(gap))
    # log(1 + tail) loses tail below 1e-7; the series is then exact to float32.
    log1p = tl.where(tail < 1e-4, tail - 0.5 * tail * tail, tl.log(1.0 + tail))
    loss = tl.where(gap == gap, tl.maximum(gap, 0.0), gap) + log1p  # noqa: PLR0124 - keeps a NaN
    slope = tl.where(gap >= 0.0, 1.0 / (1.0 + tail), tail / (1.0 + tail))
    slope = tl.where(gap == gap, slope, gap)  # noqa: PLR0124
    tl.store(loss_ptr + row, tl.where(idle, 0.0, loss), mask=row < n)
    tl.store(saved_ptr + row, tl.where(idle, 0.0, slope), mask=row < n)
    tl.store(saved_ptr + n + row, m_pos, mask=row < n)
    tl.store(saved_ptr + 2 * n + row, inv_pos, mask=row < n)
    tl.store(saved_ptr + 3 * n + row, p, mask=row < n)
    tl.store(saved_ptr + 4 * n + row, tl.where(idle, 0.0, -m_neg), mask=row < n)
    tl.store(saved_ptr + 5 * n + row, inv_neg, mask=row < n)
    tl.store(saved_ptr + 6 * n + row, q, mask=row < n)


@triton.jit
def _forward_kernel(
    x_ptr, labels_ptr, parts_ptr, counter_ptr, total_ptr, loss_ptr, saved_ptr, dist_ptr, share, n, n_cols,
    STABLE: tl.constexpr, EPS_: tl.constexpr, FLOOR_: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, ANCHORS: tl.constexpr, PARTNERS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """total_ptr None: nobody asked for the sum of share * loss."""
    row = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS).to(tl.int64)
    col = tl.arange(0, PARTNERS).to(tl.int64)
    store_products(x_ptr, x_ptr, parts_ptr, row, col, n, n, n_cols, PRECISION, COLUMNS, BLOCK_K)
    if last_program(counter_ptr + tl.program_id(0), tl.num_programs(1)):
        sq = sum_products(x_ptr, x_ptr, parts_ptr, row, col, n, n, n_cols, CLOSE, True)
        d = tl.sqrt_rn(tl.where(sq < FLOOR_, FLOOR_, sq))
        inside = (row[:, None] < n) & (col[None, :] < n)
        tl.store(dist_ptr + row[:, None] * n + col[None, :], d, mask=inside)
        label = tl.load(labels_ptr + row, mask=row < n, other=0)
        same = label[:, None] == tl.load(labels_ptr + col, mask=col < n, other=0)[None, :]
        zero = tl.zeros((ANCHORS,), tl.float32)
        least = tl.full((ANCHORS,), float("-inf"), tl.float32)
        m_pos, z_pos, t_pos = softmax_update(d, d, inside & same, least, zero, zero, True)
        m_neg, z_neg, t_neg = softmax_update(d, -d, inside & (same == 0), least if STABLE else zero, zero, zero, STABLE)
        finish(m_pos, z_pos, t_pos, m_neg, z_neg, t_neg, loss_ptr, saved_ptr, row, n, STABLE, EPS_)
        if total_ptr is not None:
            blocks = tl.num_programs(0)
            reduce_rows(loss_ptr, total_ptr, counter_ptr + blocks, share, n, blocks, ROWS)


def weigh(
    x: Tensor, labels: Tensor, loss: Tensor, saved: Tensor, dist: Tensor, precision: str, reduction: str, how: dict
) -> None:
    """Loss, saved values and distances of at most SMALL contiguous rows, into what the op allocated."""
    n, d = x.shape
    rows, total = (loss, None) if reduction == "none" else (loss.new_empty(n), loss)
    grid, parts, blocks = split_launch(x, x, precision)
    _forward_kernel[grid](
        x, labels, parts, counters(x), total, rows, saved, dist, share_of_row(n, reduction), n, d, ROWS=SMALL,
        **how, **blocks,
    )  # fmt: skip


@triton.jit
def coefficients(
    d, same, grad_ptr, each, saved_ptr, anchor, inside, n,
    AXIS: tl.constexpr, STABLE: tl.constexpr, EPS_: tl.constexpr,
):  # fmt: skip
    """dL/dd of a tile whose anchors lie along the rows (AXIS 1: expand columns) or along the columns (AXIS 0).

    ``each`` is 1 where every anchor has a gradient of its own, and 0 where all share one.
    """
    slope = tl.load(grad_ptr + each * anchor, mask=inside, other=0.0)
    slope *= tl.load(saved_ptr + anchor, mask=inside, other=0.0)
    top = tl.expand_dims(tl.load(saved_ptr + n + anchor, mask=inside, other=0.0), AXIS)
    w_pos = tl.expand_dims(slope * tl.load(saved_ptr + 2 * n + anchor, mask=inside, other=0.0), AXIS)
    p = tl.expand_dims(tl.load(saved_ptr + 3 * n + anchor, mask=inside, other=0.0), AXIS)
    least = tl.expand_dims(tl.load(saved_ptr + 4 * n + anchor, mask=inside, other=0.0), AXIS)
    w_neg = tl.expand_dims(slope * tl.load(saved_ptr + 5 * n + anchor, mask=inside, other=0.0), AXIS)
    q = tl.expand_dims(tl.load(saved_ptr + 6 * n + anchor, mask=inside, other=0.0), AXIS)
    pos = tl.exp(tl.where(same, d - top, 0.0)) * (1.0 + d - p)
    if not STABLE:
        pos = pos - tl.where(d >= top, EPS_ * p, 0.0)
    neg = tl.exp(tl.where(same, 0.0, least - d)) * (1.0 - d + q)
    return tl.where(same, w_pos * pos, -w_neg * neg)


@triton.jit
def _backward_kernel(
    grad_ptr, saved_ptr, dist_ptr, x_ptr, labels_ptr, out_ptr, share, each, n, n_cols,
    STABLE: tl.constexpr, EPS_: tl.constexpr, FLOOR_: tl.constexpr, PRECISION: tl.constexpr,
    ANCHORS: tl.constexpr, PARTNERS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """ANCHORS rows by BLOCK_D columns of the gradient. Each side of a pair takes the distance that it saw forward."""
    row = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS).to(tl.int64)
    col = tl.arange(0, PARTNERS).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (row[:, None] < n) & (col[None, :] < n)
    label = tl.load(labels_ptr + row, mask=row < n, other=0)
    same = label[:, None] == tl.load(labels_ptr + col, mask=col < n, other=0)[None, :]
    d = tl.load(dist_ptr + row[:, None] * n + col[None, :], mask=inside, other=1.0)
    s = coefficients(d, same, grad_ptr, each, saved_ptr, row, row < n, n, 1, STABLE, EPS_) / d
    far = inside & (row[:, None] != col[None, :]) & ((d * d <= FLOOR_ * 1.0001) == 0)
    d = tl.load(dist_ptr + col[None, :] * n + row[:, None], mask=inside, other=1.0)
    s += coefficients(d, same, grad_ptr, each, saved_ptr, col, col < n, n, 0, STABLE, EPS_) / d
    s = tl.where(far, s * tl.cast(share, tl.float32), 0.0)
    pull_rows(s, x_ptr, out_ptr, row, col, k, n, n_cols, PRECISION)


def pull_few(
    grad: Tensor, saved: Tensor, dist: Tensor, x: Tensor, labels: Tensor, out: Tensor, precision: str, reduction: str,
    how: dict,
) -> None:  # fmt: skip
    """Gradient of at most SMALL contiguous rows, into what the op allocated."""
    grid, blocks = pull_launch(x, precision)
    _backward_kernel[grid](
        grad, saved, dist, x, labels, out, share_of_row(len(x), reduction), int(reduction == "none"), *x.shape,
        **how, **blocks,
    )  # fmt: skip
