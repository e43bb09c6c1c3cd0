r"""pairwise_distance: d[i, j] = ||a_i - b_j||, squared or rooted.

Shapes  feat [N, D], other [M, D] or None for feat itself; out [N, M], float32 (float64 for float64 inputs).
        ``floor`` clamps the squared distance from below; ``root`` takes the square root; no gradient through a
        clamped entry.
Memory  out, and (CPU) one packed copy of the inputs; the backward adds tiles of 512 x 512.
Floor   one N x M x D product, half of one for a set against itself on the CPU; N*M*4 bytes written.
Measured 0.88, 0.44 and 0.40 of the platform's product for 128, 512 and 2048 rows of 2048 on two cores of an AMD EPYC.
Source  specs idkl 4 (floor 1e-12), idkl 5 (floor 1e-6).
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels._tile import CLOSE_PAIR, gpu_rows, input_precision, mean_row, sqdist_tile, tile_launch

STRIP = 512


def pairwise_distance_ref(feat: Tensor, other: Tensor | None, floor: float, root: bool, precision: str) -> Tensor:
    acc = torch.promote_types(feat.dtype, torch.float32)
    x = feat.to(acc)
    y = x if other is None else other.to(acc)
    sq = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * (x @ y.T)
    sq = sq.clamp(min=floor)
    return sq.sqrt() if root else sq


@triton.jit
def _pairwise_kernel(
    x_ptr, y_ptr, mean_ptr, out_ptr, n, m, n_cols, floor,
    SAME: tl.constexpr, ROOT: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    sq = sqdist_tile(x_ptr, y_ptr, mean_ptr, row, col, n, m, n_cols, CLOSE, SAME, PRECISION, BLOCK_K)
    out = tl.where(sq < tl.cast(floor, tl.float32), tl.cast(floor, tl.float32), sq)
    if ROOT:
        out = tl.sqrt_rn(out)
    mask = (row[:, None] < n) & (col[None, :] < m)
    tl.store(out_ptr + row[:, None] * tl.cast(m, tl.int64) + col[None, :], out, mask=mask)


pairwise_distance = Op("pairwise_distance", pairwise_distance_ref)


@pairwise_distance.register_fake
def _alloc(feat: Tensor, other: Tensor | None, floor: float, root: bool, precision: str) -> Tensor:
    y = feat if other is None else other
    fits = feat.dim() == 2 and y.dim() == 2 and feat.size(1) == y.size(1)
    check(fits, lambda: f"pairwise_distance: expected [N, D] and [M, D], got {list(feat.shape)} and {list(y.shape)}")
    return feat.new_empty(feat.size(0), y.size(0), dtype=torch.promote_types(feat.dtype, torch.float32))


@pairwise_distance.register_kernel("cpu")
def _cpu(feat: Tensor, other: Tensor | None, floor: float, root: bool, precision: str) -> Tensor:
    out = _alloc(feat, other, floor, root, precision)
    if out.numel() == 0:
        return out
    y = None if other is None else float_rows(other)
    _C.pairwise(float_rows(feat), y, floor, root, out, torch.get_num_threads())
    return out


@pairwise_distance.register_kernel("cuda")
def _triton(feat: Tensor, other: Tensor | None, floor: float, root: bool, precision: str) -> Tensor:
    out = _alloc(feat, other, floor, root, precision)
    if out.numel() == 0:
        return out
    x = gpu_rows(feat)
    y = x if other is None else gpu_rows(other)
    (n, n_cols), m = x.shape, len(y)
    with torch.cuda.device_of(x):
        mean = mean_row(x, y)
        launch = tile_launch(n, m)
        grid = (triton.cdiv(n, launch["BLOCK_M"]), triton.cdiv(m, launch["BLOCK_N"]))
        _pairwise_kernel[grid](
            x, y, mean, out, n, m, n_cols, floor, SAME=x is y, ROOT=root, CLOSE=CLOSE_PAIR,
            PRECISION=input_precision(precision), **launch,
        )  # fmt: skip
    return out


def _backward_ref(
    grad: Tensor, dist: Tensor, feat: Tensor, other: Tensor | None, floor: float, root: bool
) -> tuple[Tensor, Tensor]:
    """grad_x_i = sum_j w_ij (x_i - y_j) with w = grad / d (root) or 2 grad, 0 where clamped; and the mirror for y.

    Products over tiles, so w is never larger than STRIP x STRIP. The rows are moved to their mean first: then the
    two large terms of x_i sum_j w_ij - sum_j w_ij y_j do not cancel.
    """
    acc = dist.dtype
    x = feat.to(acc)
    y = x if other is None else other.to(acc)
    origin = x.nan_to_num(0.0, 0.0, 0.0).mean(0) if len(x) else x.new_zeros(x.size(1))
    x, y = x - origin, y - origin
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    least = torch.full((), floor, dtype=acc, device=x.device)
    least = least.sqrt() if root else least  # rounded as the forward rounds it: clamped entries are equal to it
    for i in range(0, len(x), STRIP):
        for j in range(0, len(y), STRIP):
            rows, cols = slice(i, i + STRIP), slice(j, j + STRIP)
            d = dist[rows, cols]
            w = grad[rows, cols] / d if root else 2 * grad[rows, cols]
            w = w.masked_fill(d <= least, 0.0)
            grad_x[rows].addcmul_(x[rows], w.sum(1, keepdim=True)).addmm_(w, y[cols], alpha=-1)
            grad_y[cols].addcmul_(y[cols], w.sum(0).unsqueeze(1)).addmm_(w.T, x[rows], alpha=-1)
    if other is None:
        return (grad_x + grad_y).to(feat.dtype), grad_y.new_empty(0)
    return grad_x.to(feat.dtype), grad_y.to(other.dtype)


pairwise_distance_backward = Op("pairwise_distance_backward", _backward_ref)


@pairwise_distance_backward.register_fake
def _alloc_backward(grad, dist, feat, other, floor, root):
    return torch.empty_like(feat, memory_format=torch.contiguous_format), (
        feat.new_empty(0, dtype=dist.dtype)
        if other is None
        else torch.empty_like(other, memory_format=torch.contiguous_format)
    )


def _setup(ctx, inputs, output):
    feat, other, ctx.floor, ctx.root, _ = inputs
    ctx.save_for_backward(feat, other, output)


def _backward(ctx, grad):
    if grad is None:
        return (None,) * 5
    feat, other, dist = ctx.saved_tensors
    grad_feat, grad_other = pairwise_distance_backward(grad, dist, feat, other, ctx.floor, ctx.root)
    return grad_feat, None if other is None else grad_other, None, None, None


pairwise_distance.register_autograd(_backward, _setup)
