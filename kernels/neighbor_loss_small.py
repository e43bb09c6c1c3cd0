"""Triton kernels of neighbor_loss for few rows, one launch forward and one backward; and what streamed ones share.

Forward, the last program of each block of rows takes their softmaxes, see ``_split``, and the last of those adds up the
losses. Distances are kept, as on the CPU: backward, a program has the factors of its rows, of either set, from them,
and waits for nobody.
"""

from torch import Tensor

from vifast.kernels._lang import tl, triton
from vifast.kernels._reduction import share_of_row
from vifast.kernels._small import SMALL, counters, last_program, reduce_rows
from vifast.kernels._split import pull_launch, pull_rows, split_launch, store_products, sum_products
from vifast.kernels._tile import finite, softmax_update
from vifast.kernels.batch_hard_small import distance


@triton.jit
def look(d, same, row, col, m, factor, top, z, count, near, SAME: tl.constexpr):
    """One tile into the running softmax of rows over their neighbors, and into the number and distances of positives.

    A pair that spoils the row counts as a positive at distance NaN: with a reference any that is not finite, otherwise
    that of the row with itself.
    """
    inside = (col[None, :] < m) & (row[:, None] >= 0)
    sound = finite(d) == d
    exists = inside & sound
    spoils = inside & (sound == 0)
    if SAME:
        itself = row[:, None] == col[None, :]
        exists = exists & (itself == 0)
        spoils = spoils & itself
    top, z, _ = softmax_update(d, -d, exists, top, z, z, True, factor)
    positive = exists & same
    count += tl.sum((positive | spoils).to(tl.float32), 1)
    near += tl.sum(tl.where(spoils, float("nan"), tl.where(positive, d, 0.0)), 1)
    return top, z, count, near


@triton.jit
def finish(top, z, count, near, loss_ptr, saved_ptr, row, n, factor):
    """Losses of rows and what their backward needs, stored."""
    some = tl.maximum(count, 1.0)
    z = tl.where(z == 0.0, 1.0, z)
    loss = tl.log(z) + factor * (near / some + top) - tl.log(some)
    idle = (count == 0.0) | (near != near)  # noqa: PLR0124 - spoilt
    tl.store(loss_ptr + row, tl.where(count == 0.0, 0.0, loss), mask=row < n)
    tl.store(saved_ptr + row, tl.where(idle, 0.0, -top), mask=row < n)
    tl.store(saved_ptr + n + row, tl.where(idle, 0.0, 1.0 / z), mask=row < n)
    tl.store(saved_ptr + 2 * n + row, tl.where(idle, 0.0, 1.0 / some), mask=row < n)


@triton.jit
def _forward_kernel(
    x_ptr, y_ptr, labels_ptr, ref_labels_ptr, parts_ptr, counter_ptr, total_ptr, loss_ptr, saved_ptr, dist_ptr, factor,
    share, n, m, n_cols, SAME: tl.constexpr, ROOT: tl.constexpr, FLOOR_: tl.constexpr, CLOSE: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, ANCHORS: tl.constexpr, PARTNERS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """total_ptr None: nobody asked for the sum of share * loss."""
    factor = tl.cast(factor, tl.float32)
    row = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS).to(tl.int64)
    col = tl.arange(0, PARTNERS).to(tl.int64)
    store_products(x_ptr, y_ptr, parts_ptr, row, col, n, m, n_cols, PRECISION, COLUMNS, BLOCK_K)
    if last_program(counter_ptr + tl.program_id(0), tl.num_programs(1)):
        sq = sum_products(x_ptr, y_ptr, parts_ptr, row, col, n, m, n_cols, CLOSE, SAME)
        d = distance(sq, ROOT, 1.0, FLOOR_)
        tl.store(dist_ptr + row[:, None] * m + col[None, :], d, mask=(row[:, None] < n) & (col[None, :] < m))
        label = tl.load(labels_ptr + row, mask=row < n, other=0)
        same = label[:, None] == tl.load(ref_labels_ptr + col, mask=col < m, other=0)[None, :]
        zero = tl.zeros((ANCHORS,), tl.float32)
        least = tl.full((ANCHORS,), float("-inf"), tl.float32)
        top, z, count, near = look(d, same, row, col, m, factor, least, zero, zero, zero, SAME)
        finish(top, z, count, near, loss_ptr, saved_ptr, row, n, factor)
        if total_ptr is not None:
            blocks = tl.num_programs(0)
            reduce_rows(loss_ptr, total_ptr, counter_ptr + blocks, share, n, blocks, ROWS)


def search(
    x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, factor: float, precision: str, reduction: str, out: tuple,
    how: dict,
) -> None:  # fmt: skip
    """What the op allocated, filled for at most SMALL contiguous rows and neighbors."""
    loss, saved, _, dist = out
    rows, total = (loss, None) if reduction == "none" else (loss.new_empty(len(x)), loss)
    grid, parts, blocks = split_launch(x, y, precision)
    _forward_kernel[grid](
        x, y, labels, ref_labels, parts, counters(x), total, rows, saved, dist, factor,
        share_of_row(len(x), reduction), len(x), len(y), x.size(1), SAME=y is x, ROWS=SMALL, **how, **blocks,
    )  # fmt: skip


@triton.jit
def coefficients(d, same, grad_ptr, each, saved_ptr, anchor, inside, n, factor, AXIS: tl.constexpr):
    """dL/dd of a tile in which the rows that look lie along its rows (AXIS 1: expand columns) or columns (AXIS 0).

    ``each`` is 1 where every one of them has a gradient of its own, and 0 where all share one.
    """
    grad = factor * tl.load(grad_ptr + each * anchor, mask=inside, other=0.0)
    least = tl.expand_dims(tl.load(saved_ptr + anchor, mask=inside, other=0.0), AXIS)
    weight = tl.expand_dims(grad * tl.load(saved_ptr + n + anchor, mask=inside, other=0.0), AXIS)
    share = tl.expand_dims(grad * tl.load(saved_ptr + 2 * n + anchor, mask=inside, other=0.0), AXIS)
    return tl.where(same, share, 0.0) - weight * tl.exp(factor * (least - d))


@triton.jit
def factors(c, d, ROOT: tl.constexpr, FLOOR_: tl.constexpr):
    """Of differences of rows, from dL/dd; 0 for a pair that does not exist or is clamped."""
    exists = finite(d) == d
    if ROOT:
        exists = exists & ((d * d <= FLOOR_ * 1.0001) == 0)
        return tl.where(exists, c / tl.where(exists, d, 1.0), 0.0)
    return tl.where(exists, 2.0 * c, 0.0)


@triton.jit
def _backward_kernel(
    grad_ptr, saved_ptr, dist_ptr, x_ptr, y_ptr, labels_ptr, ref_labels_ptr, to_x_ptr, to_y_ptr, factor, share, each,
    n, m, n_cols, SAME: tl.constexpr, ROOT: tl.constexpr, FLOOR_: tl.constexpr, PRECISION: tl.constexpr,
    ANCHORS: tl.constexpr, PARTNERS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """ANCHORS rows by BLOCK_D columns of the gradient of one set; a null gradient is not wanted.

    Each side of a pair takes the distance that it saw forward.
    """
    row = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS).to(tl.int64)
    col = tl.arange(0, PARTNERS).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    factor, share = tl.cast(factor, tl.float32), tl.cast(share, tl.float32)
    if tl.program_id(2) == 0:
        if to_x_ptr is not None:
            inside = (row[:, None] < n) & (col[None, :] < m)
            label = tl.load(labels_ptr + row, mask=row < n, other=0)
            same = label[:, None] == tl.load(ref_labels_ptr + col, mask=col < m, other=0)[None, :]
            d = tl.load(dist_ptr + row[:, None] * m + col[None, :], mask=inside, other=1.0)
            c = coefficients(d, same, grad_ptr, each, saved_ptr, row, row < n, n, factor, 1)
            s = factors(c, d, ROOT, FLOOR_)
            if SAME:
                d = tl.load(dist_ptr + col[None, :] * m + row[:, None], mask=inside, other=1.0)
                c = coefficients(d, same, grad_ptr, each, saved_ptr, col, col < n, n, factor, 0)
                s += factors(c, d, ROOT, FLOOR_)
                inside = inside & (row[:, None] != col[None, :])
            s = tl.where(inside, share * s, 0.0)
            pull_rows(s, y_ptr, to_x_ptr, row, col, k, m, n_cols, PRECISION, None, None, 0.0, x_ptr, n)
    elif to_y_ptr is not None:
        inside = (row[:, None] < m) & (col[None, :] < n)
        label = tl.load(ref_labels_ptr + row, mask=row < m, other=0)
        same = label[:, None] == tl.load(labels_ptr + col, mask=col < n, other=0)[None, :]
        d = tl.load(dist_ptr + col[None, :] * m + row[:, None], mask=inside, other=1.0)
        c = coefficients(d, same, grad_ptr, each, saved_ptr, col, col < n, n, factor, 0)
        s = tl.where(inside, share * factors(c, d, ROOT, FLOOR_), 0.0)
        pull_rows(s, x_ptr, to_y_ptr, row, col, k, n, n_cols, PRECISION, None, None, 0.0, y_ptr, m)


def pull_few(
    grad: Tensor, saved: Tensor, dist: Tensor, x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, factor: float,
    precision: str, reduction: str, out: tuple, how: dict,
) -> None:  # fmt: skip
    """Gradients of at most SMALL contiguous rows and neighbors into ``out``, None where one is not wanted."""
    grid, blocks = pull_launch(x if len(x) >= len(y) else y, precision)
    _backward_kernel[(*grid, 1 + (out[1] is not None))](
        grad, saved, dist, x, y, labels, ref_labels, *out, factor, share_of_row(len(x), reduction),
        int(reduction == "none"), len(x), len(y), x.size(1), SAME=y is x, **how, **blocks,
    )  # fmt: skip
