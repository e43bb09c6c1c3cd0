"""Triton kernels of graph_alignment for many rows: online softmaxes forward, strips of weights backward."""

import torch
from torch import Tensor

from vifast.kernels._lang import tl, triton
from vifast.kernels._softmax import store_states
from vifast.kernels._tile import (
    CLOSE_PAIR,
    fold_grid,
    input_precision,
    mean_row,
    pull,
    softmax_update,
    sqdist_tile,
)
from vifast.kernels.graph_alignment_small import u_gradient, v_gradient, weight

STRIP = 512  # rows of a tile of the backward, as in weighted_triplet


@triton.jit
def _logits_tile(
    x_ptr, mean_ptr, row, col, n, n_cols, scale, floor,
    ROOT: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Logits of a tile in float64, and the squared distances behind them."""
    sq = sqdist_tile(x_ptr, x_ptr, mean_ptr, row, col, n, n, n_cols, CLOSE, True, PRECISION, BLOCK_K)
    if ROOT:
        return tl.sqrt_rn(tl.where(sq < floor, floor, sq)).to(tl.float64), sq
    return tl.cast(scale, tl.float64) * tl.where(sq < 0.0, 0.0, sq).to(tl.float64), sq


@triton.jit
def _fold_kernel(
    x_ptr, y_ptr, mean_x_ptr, mean_y_ptr, stats_ptr, scale, floor, n, x_cols, y_cols, n_splits,
    ROOT: tl.constexpr, DIAGONAL: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Online softmaxes of BLOCK_M rows over every n_splits-th block of columns; stats is [6, n_splits, n] float64."""
    split = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_u = tl.full((BLOCK_M,), float("-inf"), tl.float64)
    m_v = tl.full((BLOCK_M,), float("-inf"), tl.float64)
    z_u = tl.zeros((BLOCK_M,), tl.float64)
    t_u = tl.zeros((BLOCK_M,), tl.float64)
    z_v = tl.zeros((BLOCK_M,), tl.float64)
    t_v = tl.zeros((BLOCK_M,), tl.float64)
    for start in range(split * BLOCK_N, n, n_splits * BLOCK_N):
        col = tl.cast(start, tl.int64) + tl.arange(0, BLOCK_N)
        u, _ = _logits_tile(x_ptr, mean_x_ptr, row, col, n, x_cols, scale, floor, ROOT, CLOSE, PRECISION, BLOCK_K)
        v, _ = _logits_tile(y_ptr, mean_y_ptr, row, col, n, y_cols, scale, floor, ROOT, CLOSE, PRECISION, BLOCK_K)
        inside = (col[None, :] < n) & (row[:, None] < n)
        if not DIAGONAL:
            inside = inside & (row[:, None] != col[None, :])
        m_u, z_u, t_u = softmax_update(v - u, u, inside, m_u, z_u, t_u, True)
        m_v, z_v, t_v = softmax_update(v - u, v, inside, m_v, z_v, t_v, True)
    at = stats_ptr + tl.cast(split, tl.int64) * n + row
    store_states(at, tl.cast(n_splits, tl.int64) * n, (m_u, z_u, t_u, m_v, z_v, t_v), row < n)


@triton.jit
def _merged(stats_ptr, row, n, n_splits, BLOCK: tl.constexpr):
    """(largest logit, 1 / sum, mean difference) of one softmax over its splits [3, n_splits, n]."""
    side = tl.cast(n_splits, tl.int64) * n
    top = tl.full((BLOCK,), float("-inf"), tl.float64)
    for split in range(n_splits):
        m = tl.load(stats_ptr + tl.cast(split, tl.int64) * n + row, mask=row < n, other=0.0)
        top = tl.where(m > top, m, top)
    z = tl.zeros((BLOCK,), tl.float64)
    t = tl.zeros((BLOCK,), tl.float64)
    for split in range(n_splits):
        at = stats_ptr + tl.cast(split, tl.int64) * n + row
        weight = tl.exp(tl.load(at, mask=row < n, other=0.0) - top)
        z += weight * tl.load(at + side, mask=row < n, other=1.0)
        t += weight * tl.load(at + 2 * side, mask=row < n, other=0.0)
    return top, 1.0 / z, t / z


@triton.jit
def _finish_kernel(stats_ptr, saved_ptr, loss_ptr, n, n_splits, SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    top_a, inv_a, mean_a = _merged(stats_ptr, row, n, n_splits, BLOCK)
    top_b, inv_b, mean_b = _merged(stats_ptr + 3 * tl.cast(n_splits, tl.int64) * n, row, n, n_splits, BLOCK)
    store_states(saved_ptr + row, tl.cast(n, tl.int64), (top_a, inv_a, mean_a, top_b, inv_b, mean_b), row < n)
    loss = mean_b - mean_a if SYMMETRIC else mean_b - (top_b - top_a + tl.log(inv_a / inv_b))
    tl.store(loss_ptr + row, loss.to(tl.float32), mask=row < n)


# 16 rows a warp as in _tile.py; 16 columns, because two tiles of float64 logits spill registers at 32. The limit is all
# that a thread can have: left to itself ptxas stops at 168 registers, for one more block, and spills what is over.
_LAUNCH = {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 2, "num_stages": 2, "maxnreg": 255}


def fold(
    x: Tensor, y: Tensor, scale: float | None, floor: float, diagonal: bool, symmetric: bool, precision: str,
    loss: Tensor, saved: Tensor,
) -> None:  # fmt: skip
    """Losses of rows and what the backward needs, into what the op allocated."""
    n = len(x)
    rows, splits = fold_grid(n, n, _LAUNCH)
    stats = x.new_empty(6, splits, n, dtype=torch.float64)
    _fold_kernel[(rows, splits)](
        x, y, mean_row(x, x), mean_row(y, y), stats, 1.0 if scale is None else scale, floor, n, x.size(1), y.size(1),
        splits, ROOT=scale is None, DIAGONAL=diagonal, CLOSE=CLOSE_PAIR, PRECISION=input_precision(precision),
        **_LAUNCH,
    )  # fmt: skip
    _finish_kernel[(triton.cdiv(n, 32),)](stats, saved, loss, n, splits, SYMMETRIC=symmetric, BLOCK=32, num_warps=1)


@triton.jit
def _strip_kernel(
    x_ptr, y_ptr, mean_x_ptr, mean_y_ptr, grad_ptr, saved_ptr, x_strip_ptr, y_strip_ptr, scale, floor, row0, n_rows, n,
    x_cols, y_cols, ROOT: tl.constexpr, SYMMETRIC: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """s_ij of both sets for rows row0 .. row0 + n_rows against all columns; a null strip is not wanted."""
    local = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = row0 + local
    col = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in = (local < n_rows) & (row < n)
    col_in = col < n
    u, sq_u = _logits_tile(x_ptr, mean_x_ptr, row, col, n, x_cols, scale, floor, ROOT, CLOSE, PRECISION, BLOCK_K)
    v, sq_v = _logits_tile(y_ptr, mean_y_ptr, row, col, n, y_cols, scale, floor, ROOT, CLOSE, PRECISION, BLOCK_K)
    valid = row_in[:, None] & col_in[None, :]
    other = row[:, None] != col[None, :]
    at = local[:, None] * tl.cast(n, tl.int64) + col[None, :]
    if x_strip_ptr is not None:
        c = u_gradient(u, v, grad_ptr, 1, saved_ptr, row, row_in, n, 1, SYMMETRIC)
        c += u_gradient(u, v, grad_ptr, 1, saved_ptr, col, col_in, n, 0, SYMMETRIC)
        tl.store(x_strip_ptr + at, weight(c, u, sq_u, other, scale, floor, ROOT), mask=valid)
    if y_strip_ptr is not None:
        c = v_gradient(u, v, grad_ptr, 1, saved_ptr, row, row_in, n, 1, SYMMETRIC)
        c += v_gradient(u, v, grad_ptr, 1, saved_ptr, col, col_in, n, 0, SYMMETRIC)
        tl.store(y_strip_ptr + at, weight(c, v, sq_v, other, scale, floor, ROOT), mask=valid)


def pull_rows(
    grad: Tensor, saved: Tensor, x: Tensor, y: Tensor, scale: float | None, floor: float, symmetric: bool,
    precision: str, want_x: bool, want_y: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of the wanted sets from the gradient of every row's loss."""
    n, sides = len(x), []  # mean, mean-free rows, gradient, strip of weights
    for rows, want in ((x, want_x), (y, want_y)):
        mean = mean_row(rows, rows)
        x_c = rows.float() - mean if want else None
        out = torch.empty_like(x_c) if want else None
        sides.append((mean, x_c, out, x.new_empty(min(STRIP, n), n, dtype=torch.float32) if want else None))
    for start in range(0, n, STRIP):
        rows = min(STRIP, n - start)
        grid = (triton.cdiv(rows, _LAUNCH["BLOCK_M"]), triton.cdiv(n, _LAUNCH["BLOCK_N"]))
        _strip_kernel[grid](
            x, y, sides[0][0], sides[1][0], grad, saved, sides[0][-1], sides[1][-1],
            1.0 if scale is None else scale, floor, start, rows, n, x.size(1), y.size(1), ROOT=scale is None,
            SYMMETRIC=symmetric, CLOSE=CLOSE_PAIR, PRECISION=input_precision(precision), **_LAUNCH,
        )  # fmt: skip
        for _, x_c, out, strip in sides:
            if out is not None:
                pull(strip[:rows], start, x_c, out)
    return tuple(out for *_, out, _ in sides)
