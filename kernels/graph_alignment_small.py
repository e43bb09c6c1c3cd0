"""Triton kernels of graph_alignment and relation_alignment for few rows, one launch each way; and gradients of a tile.

Forward, the last program of each block of rows takes their softmaxes, see ``_split``, and the last of those adds up the
losses. Distances are kept, as on the CPU: backward, a program has the weights of its rows against all others from them,
and waits for nobody.
"""

from torch import Tensor

from vifast.kernels._lang import tl, triton
from vifast.kernels._reduction import share_of_row
from vifast.kernels._small import SMALL, counters, last_program, reduce_rows
from vifast.kernels._split import pull_launch, pull_rows, split_launch, store_products, sum_products
from vifast.kernels.unit_rows import LEAST_NORM


@triton.jit
def _kept(sq, kept_ptr, at, inside, scale, floor, ROOT: tl.constexpr):
    """Logits in float64; the distances behind them are stored."""
    dist = tl.sqrt_rn(tl.where(sq < floor, floor, sq)) if ROOT else tl.where(sq < 0.0, 0.0, sq)
    tl.store(kept_ptr + at, dist, mask=inside)
    return _logits(dist, scale, ROOT)


@triton.jit
def _logits(dist, scale, ROOT: tl.constexpr):
    logits = dist.to(tl.float64)
    if not ROOT:
        logits *= tl.cast(scale, tl.float64)
    return logits


@triton.jit
def _softmax(logits, delta, inside):
    """(largest logit, 1 / sum, mean difference) of every row; those without columns are finite."""
    top = tl.max(tl.where(inside, logits, float("-inf")), 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.where(inside, tl.exp(tl.where(inside, logits - top[:, None], 0.0)), 0.0)
    z = tl.sum(weight, 1)
    inverse = 1.0 / tl.where(z == 0.0, 1.0, z)
    return top, inverse, tl.sum(weight * delta, 1) * inverse


@triton.jit
def _forward_kernel(
    x_ptr, y_ptr, parts_ptr, counter_ptr, total_ptr, loss_ptr, saved_ptr, kept_x_ptr, kept_y_ptr, norm_x_ptr,
    norm_y_ptr, keep_ptr, scale, floor, share, n, x_cols, y_cols, ROOT: tl.constexpr, DIAGONAL: tl.constexpr,
    SYMMETRIC: tl.constexpr, LEAST: tl.constexpr, ROWS: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    ANCHORS: tl.constexpr, PARTNERS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """total_ptr None: nobody asked for the sum, and share goes to every row. With norms the graphs of unit rows."""
    CENTER: tl.constexpr = norm_x_ptr is None
    row = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS).to(tl.int64)
    col = tl.arange(0, PARTNERS).to(tl.int64)
    blocks = tl.num_programs(0)
    of_y = parts_ptr + blocks * tl.num_programs(1) * (ANCHORS * PARTNERS + ANCHORS + PARTNERS)
    if tl.program_id(2) == 0:
        store_products(x_ptr, x_ptr, parts_ptr, row, col, n, n, x_cols, PRECISION, COLUMNS, BLOCK_K, CENTER)
    else:
        store_products(y_ptr, y_ptr, of_y, row, col, n, n, y_cols, PRECISION, COLUMNS, BLOCK_K, CENTER)
    if last_program(counter_ptr + tl.program_id(0), 2 * tl.num_programs(1)):
        sq_u = sum_products(x_ptr, x_ptr, parts_ptr, row, col, n, n, x_cols, CLOSE, True, norm_x_ptr, LEAST)
        sq_v = sum_products(y_ptr, y_ptr, of_y, row, col, n, n, y_cols, CLOSE, True, norm_y_ptr, LEAST)
        inside = (row[:, None] < n) & (col[None, :] < n)
        at = row[:, None] * n + col[None, :]
        u = _kept(sq_u, kept_x_ptr, at, inside, scale, floor, ROOT)
        v = _kept(sq_v, kept_y_ptr, at, inside, scale, floor, ROOT)
        if not DIAGONAL:
            inside = inside & (row[:, None] != col[None, :])
        delta = tl.where(inside, v - u, 0.0)
        top_u, inv_u, mean_u = _softmax(u, delta, inside)
        top_v, inv_v, mean_v = _softmax(v, delta, inside)
        saved = (top_u, inv_u, mean_u, top_v, inv_v, mean_v)
        for k in tl.static_range(6):
            tl.store(saved_ptr + k * n + row, saved[k], mask=row < n)
        loss = mean_v - mean_u if SYMMETRIC else mean_v - (top_v - top_u + tl.log(inv_u / inv_v))
        if keep_ptr is not None:
            loss *= tl.load(keep_ptr + row, mask=row < n, other=0.0).to(tl.float64)
        if total_ptr is None:
            loss *= tl.cast(share, tl.float64)
        tl.store(loss_ptr + row, loss.to(tl.float32), mask=row < n)
        if total_ptr is not None:
            reduce_rows(loss_ptr, total_ptr, counter_ptr + blocks, share, n, blocks, ROWS)


def align(
    x: Tensor, y: Tensor, scale: float | None, floor: float, diagonal: bool, symmetric: bool, precision: str,
    reduction: str, factor: float, out: tuple, norms: tuple = (None, None), keep: Tensor | None = None,
) -> None:  # fmt: skip
    """What the op allocated, filled for at most SMALL contiguous rows; keep [N] multiplies their losses.

    ``norms`` [N] of both sides ask for the graphs of unit rows, and are filled too.
    """
    loss, *kept = out
    rows, total = (loss, None) if reduction == "none" else (loss.new_empty(len(x)), loss)
    wider = x if x.size(1) >= y.size(1) else y
    grid, parts, blocks = split_launch(wider, wider, precision)
    _forward_kernel[(*grid, 2)](
        x, y, parts.new_empty(2, *parts.shape), counters(x), total, rows, *kept, *norms, keep,
        1.0 if scale is None else scale, floor, factor * share_of_row(len(x), reduction), len(x), x.size(1), y.size(1),
        ROOT=scale is None, DIAGONAL=diagonal, SYMMETRIC=symmetric, LEAST=LEAST_NORM, ROWS=SMALL, maxnreg=255, **blocks,
    )  # fmt: skip


@triton.jit
def _state(ptr, anchor, inside, AXIS: tl.constexpr):
    return tl.expand_dims(tl.load(ptr + anchor, mask=inside, other=0.0), AXIS).to(tl.float64)


@triton.jit
def _shares(u, v, saved_ptr, anchor, inside, n, AXIS: tl.constexpr):
    """p and q of a tile whose graph rows lie along its rows (AXIS 1) or along its columns (AXIS 0)."""
    p = tl.exp(u - _state(saved_ptr, anchor, inside, AXIS)) * _state(saved_ptr + n, anchor, inside, AXIS)
    q = tl.exp(v - _state(saved_ptr + 3 * n, anchor, inside, AXIS)) * _state(saved_ptr + 4 * n, anchor, inside, AXIS)
    return p, q


@triton.jit
def u_gradient(
    u, v, grad_ptr, each, saved_ptr, anchor, inside, n, AXIS: tl.constexpr, SYMMETRIC: tl.constexpr
):  # fmt: skip
    """Gradient in u of rows that lie along ``AXIS``; ``each`` is 1 where grad has an entry for each of them, else 0."""
    p, q = _shares(u, v, saved_ptr, anchor, inside, n, AXIS)
    c = p - q
    if SYMMETRIC:
        c -= p * (v - u - _state(saved_ptr + 2 * n, anchor, inside, AXIS))
    return c * _state(grad_ptr, anchor * each, inside, AXIS)


@triton.jit
def v_gradient(
    u, v, grad_ptr, each, saved_ptr, anchor, inside, n, AXIS: tl.constexpr, SYMMETRIC: tl.constexpr
):  # fmt: skip
    p, q = _shares(u, v, saved_ptr, anchor, inside, n, AXIS)
    c = q * (v - u - _state(saved_ptr + 5 * n, anchor, inside, AXIS))
    if SYMMETRIC:
        c += q - p
    return c * _state(grad_ptr, anchor * each, inside, AXIS)


@triton.jit
def weight(c, logit, sq, other, scale, floor, ROOT: tl.constexpr):
    """s of a tile from the gradients in its logits."""
    if ROOT:
        return tl.where(other & (sq > floor), c / logit, 0.0).to(tl.float32)
    return tl.where(other, 2.0 * scale * c, 0.0).to(tl.float32)


@triton.jit
def _backward_kernel(
    grad_ptr, saved_ptr, kept_x_ptr, kept_y_ptr, x_ptr, y_ptr, to_x_ptr, to_y_ptr, norm_x_ptr, keep_ptr, scale, floor,
    share, each, n, x_cols, y_cols, ROOT: tl.constexpr, SYMMETRIC: tl.constexpr, LEAST: tl.constexpr,
    PRECISION: tl.constexpr, ANCHORS: tl.constexpr, PARTNERS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """ANCHORS rows by BLOCK_D columns of the gradient of one set; a null gradient is not wanted.

    keep and the norms are of relation_alignment, whose y has no gradient.
    """
    row = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS).to(tl.int64)
    col = tl.arange(0, PARTNERS).to(tl.int64)
    k = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    row_in = row < n
    col_in = col < n
    inside = row_in[:, None] & col_in[None, :]
    other = inside & (row[:, None] != col[None, :])
    at = row[:, None] * n + col[None, :]
    du = tl.load(kept_x_ptr + at, mask=inside, other=1.0)
    dv = tl.load(kept_y_ptr + at, mask=inside, other=1.0)
    u = _logits(du, scale, ROOT)
    v = _logits(dv, scale, ROOT)
    if tl.program_id(2) == 0:
        if to_x_ptr is not None:
            c = u_gradient(u, v, grad_ptr, each, saved_ptr, row, row_in, n, 1, SYMMETRIC)
            of_col = u_gradient(u, v, grad_ptr, each, saved_ptr, col, col_in, n, 0, SYMMETRIC)
            if keep_ptr is not None:
                c *= _state(keep_ptr, row, row_in, 1)
                of_col *= _state(keep_ptr, col, col_in, 0)
            s = weight((c + of_col) * share, u, du, other, scale, floor, ROOT)
            pull_rows(s, x_ptr, to_x_ptr, row, col, k, n, x_cols, PRECISION, norm_x_ptr, du, LEAST)
    elif to_y_ptr is not None:
        c = v_gradient(u, v, grad_ptr, each, saved_ptr, row, row_in, n, 1, SYMMETRIC)
        c += v_gradient(u, v, grad_ptr, each, saved_ptr, col, col_in, n, 0, SYMMETRIC)
        s = weight(c * share, v, dv, other, scale, floor, ROOT)
        pull_rows(s, y_ptr, to_y_ptr, row, col, k, n, y_cols, PRECISION)


def pull_few(
    grad: Tensor, saved: Tensor, kept_x: Tensor, kept_y: Tensor, x: Tensor, y: Tensor, scale: float | None,
    floor: float, symmetric: bool, precision: str, reduction: str, factor: float, out: tuple,
    norm: Tensor | None = None, keep: Tensor | None = None,
) -> None:  # fmt: skip
    """Gradients of at most SMALL contiguous rows into ``out``, None where one is not wanted.

    A clamped distance is within a rounding of the root of the floor.
    """
    grid, blocks = pull_launch(x if x.size(1) >= y.size(1) else y, precision)
    # Two warps are else held to 128 registers, and spill, on an sm_80; told 255, more warps spill on an sm_90.
    _backward_kernel[(*grid, 2)](
        grad, saved, kept_x, kept_y, x, y, *out, norm, keep, 1.0 if scale is None else scale,
        1.0001 * floor**0.5, factor * share_of_row(len(x), reduction), int(reduction == "none"),
        len(x), x.size(1), y.size(1), ROOT=scale is None, SYMMETRIC=symmetric, LEAST=LEAST_NORM,
        maxnreg=255 if blocks["num_warps"] == 2 else None, **blocks,
    )  # fmt: skip
