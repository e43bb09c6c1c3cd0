"""Device code that the distance kernels share: the mean row, a tile of squared distances, launch shapes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vifast.kernels._lang import tl, triton
from vifast.kernels._small import SMALL

CLOSE_PAIR = 1 / 64  # as kClosePair in csrc/distance.h


@triton.jit
def finite(x):
    """x, and 0 where it is not finite."""
    return tl.where(tl.abs(x) <= 3.4028234e38, x, 0.0)


@triton.jit
def _mean_kernel(
    x_ptr, y_ptr, mean_ptr, n, m, n_cols, SAME: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Column means of the finite entries of both sets. One program per block of columns, rows in order."""
    col = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    count = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, n, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R).to(tl.int64)
        mask = (row[:, None] < n) & (col[None, :] < n_cols)
        x = tl.load(x_ptr + row[:, None] * n_cols + col[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(finite(x), 0)
        count += tl.sum((mask & (finite(x) == x)).to(tl.float32), 0)
    if not SAME:
        for start in range(0, m, BLOCK_R):
            row = start + tl.arange(0, BLOCK_R).to(tl.int64)
            mask = (row[:, None] < m) & (col[None, :] < n_cols)
            y = tl.load(y_ptr + row[:, None] * n_cols + col[None, :], mask=mask, other=0.0).to(tl.float32)
            total += tl.sum(finite(y), 0)
            count += tl.sum((mask & (finite(y) == y)).to(tl.float32), 0)
    tl.store(mean_ptr + col, total / tl.maximum(count, 1.0), mask=col < n_cols)


def mean_row(x: Tensor, y: Tensor) -> Tensor:
    """A row near all rows: any origin is right, the mean removes the cancellation of a shared offset.

    Of few rows it is the first, which costs no launch: squares of what is left, and with them the error of a distance,
    are then twice as large.
    """
    if len(x) <= SMALL and len(y) <= SMALL:
        return x[0]
    mean = x.new_empty(x.size(1), dtype=torch.float32)
    grid = (triton.cdiv(x.size(1), 32),)
    _mean_kernel[grid](x, y, mean, len(x), len(y), x.size(1), SAME=x is y, BLOCK_R=64, BLOCK_C=32)
    return mean


@triton.jit
def load_origin(mean_ptr, k, n_cols):
    """Columns k of what ``mean_row`` returned; 0 where the row that it took is not finite."""
    return finite(tl.load(mean_ptr + k, mask=k < n_cols, other=0.0).to(tl.float32))


@triton.jit
def sqdist_tile(
    x_ptr, y_ptr, mean_ptr, row, col, n, m, n_cols,
    CLOSE: tl.constexpr, SAME: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Squared distances [len(row), len(col)] of x[row] and y[col] in float32.

    The product of mean-free rows gives all of them; where a pair is so close that it lost bits, the tile is done
    again by direct difference. SAME: both sets are one, the diagonal is exactly 0. Rows beyond n and m give
    arbitrary values.
    """
    dot = tl.zeros((row.shape[0], col.shape[0]), tl.float32)
    sq_x = tl.zeros((row.shape[0],), tl.float32)
    sq_y = tl.zeros((col.shape[0],), tl.float32)
    for start in range(0, n_cols, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k_mask = k < n_cols
        mean = load_origin(mean_ptr, k, n_cols)
        x_mask = (row[:, None] < n) & k_mask[None, :]
        y_mask = (col[:, None] < m) & k_mask[None, :]
        x = tl.load(x_ptr + row[:, None] * n_cols + k[None, :], mask=x_mask, other=0.0).to(tl.float32) - mean[None, :]
        y = tl.load(y_ptr + col[:, None] * n_cols + k[None, :], mask=y_mask, other=0.0).to(tl.float32) - mean[None, :]
        dot = tl.dot(x, tl.trans(y), dot, input_precision=PRECISION)
        sq_x += tl.sum(x * x, 1)
        sq_y += tl.sum(y * y, 1)
    return sqdist_of_products(dot, sq_x, sq_y, x_ptr, y_ptr, row, col, n, m, n_cols, CLOSE, SAME)


@triton.jit
def sqdist_of_products(
    dot, sq_x, sq_y, x_ptr, y_ptr, row, col, n, m, n_cols, CLOSE: tl.constexpr, SAME: tl.constexpr,
    to_x=None, to_y=None,
):  # fmt: skip
    """``sqdist_tile`` from the products and the squares of mean-free rows, or of rows times to_x and to_y."""
    both = sq_x[:, None] + sq_y[None, :]
    sq = both - 2.0 * dot
    valid = (row[:, None] < n) & (col[None, :] < m)
    close = valid & (sq < CLOSE * both)
    if SAME:
        self_pair = row[:, None] == col[None, :]
        close = close & (self_pair == 0)
        sq = tl.where(self_pair & (both - both == 0.0), 0.0, sq)
    if tl.max(close.to(tl.int32)) > 0:
        direct = tl.zeros((row.shape[0], col.shape[0]), tl.float32)
        for k in range(0, n_cols):
            x_k = tl.load(x_ptr + row * n_cols + k, mask=row < n, other=0.0).to(tl.float32)
            y_k = tl.load(y_ptr + col * n_cols + k, mask=col < m, other=0.0).to(tl.float32)
            if to_x is not None:
                x_k *= to_x
                y_k *= to_y
            diff = x_k[:, None] - y_k[None, :]
            direct += diff * diff
        sq = tl.where(close, direct, sq)
    return sq


@triton.jit
def softmax_update(value, logit, mask, m, z, t, SHIFT: tl.constexpr, factor=1.0):
    """One tile into the running softmax of factor * logit: m the largest logit, z and t sums of weight, weight * value.

    Without SHIFT m stays as it is. m, z and t may be float64; the factor between two maxima is float32 even then, for
    its exponential in float64 spills with Triton 3.6.
    """
    if SHIFT:
        new = tl.maximum(m, tl.max(tl.where(mask, logit, float("-inf")), 1))
        shrink = tl.where(new > m, tl.exp((m - new).to(tl.float32) * factor), 1.0)
        z = z * shrink
        t = t * shrink
        m = new
    w = tl.where(mask, tl.exp(tl.where(mask, logit - m[:, None], 0.0) * factor), 0.0)
    return m, z + tl.sum(w, 1), t + tl.sum(tl.where(mask, w * value, 0.0), 1)


@triton.jit
def merge_softmax(stats_ptr, row, n, n_splits, side, inside, factor=1.0):
    """What ``softmax_update`` left of side 0 or 1 in each of n_splits parts of [6, n_splits, n], together."""
    step = tl.cast(n_splits, tl.int64) * n
    base = stats_ptr + 3 * side * step + row
    m = tl.load(base, mask=inside, other=0.0)
    z = tl.load(base + step, mask=inside, other=0.0)
    t = tl.load(base + 2 * step, mask=inside, other=0.0)
    for split in range(1, n_splits):
        at = base + tl.cast(split, tl.int64) * n
        m_s = tl.load(at, mask=inside, other=0.0)
        new = tl.maximum(m, m_s)
        keep = tl.where(new > m, tl.exp((m - new) * factor), 1.0)
        take = tl.where(new > m_s, tl.exp((m_s - new) * factor), 1.0)
        z = z * keep + tl.load(at + step, mask=inside, other=0.0) * take
        t = t * keep + tl.load(at + 2 * step, mask=inside, other=0.0) * take
        m = new
    return m, z, t


def pull(s: Tensor, start: int, x_c: Tensor, out: Tensor, y_c: Tensor | None = None) -> None:
    """out_i = sum_j s_ij (x_i - y_j) of mean-free rows for a strip s of weights, which begins at row ``start``.

    Without y_c of one set with itself.
    """
    own = x_c[start : start + len(s)]
    partners = x_c if y_c is None else y_c
    torch.addmm(s.sum(1, keepdim=True) * own, s, partners, alpha=-1, out=out[start : start + len(s)])


def pull_back(s: Tensor, start: int, x_c: Tensor, out: Tensor, y_c: Tensor) -> None:
    """Adds the other side of ``pull`` to out_j, sum_i s_ij (y_j - x_i)."""
    out.addcmul_(y_c, s.sum(0).unsqueeze(1)).addmm_(s.T, x_c[start : start + len(s)], alpha=-1)


def tile_launch(n: int, m: int) -> dict[str, int]:
    """Blocks and warps for an n x m problem: small tiles while few rows have to fill the card.

    16 rows a warp, because the three products of tf32x3 make Triton line up all warps along the rows; 16 columns of the
    features at once, because 32 spill registers on sm_80.
    """
    block = 32 if max(n, m) <= 512 else 64
    return {"BLOCK_M": block, "BLOCK_N": block, "BLOCK_K": 16, "num_warps": block // 16}


def fold_grid(n: int, m: int, launch: Mapping[str, int]) -> tuple[int, int]:
    """Programs along the rows of an n x m problem, and parts of its columns that they fold: about two programs per
    multiprocessor, however few the rows."""
    rows = triton.cdiv(n, launch["BLOCK_M"])
    return rows, min(triton.cdiv(m, launch["BLOCK_N"]), max(1, 256 // rows))


def input_precision(precision: str) -> str:
    """Name of the tensor-core mode: three tf32 products carry a float32 product's bits, one does not."""
    return {"exact": "tf32x3", "fast": "tf32"}[precision]


def gpu_rows(x: Tensor) -> Tensor:
    """Kernels read rows of any float type in place; only a strided layout is copied."""
    return x.detach().contiguous()
