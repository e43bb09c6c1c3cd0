r"""weighted_triplet: the weighted regularised triplet loss (WRT) of every anchor, as an online softmax.

    loss_i = log(1 + exp(p_i - q_i)),  p_i = sum_j w+_ij d_ij over positives (anchor included),  q_i over negatives

    published   w+_ij = e^{d_ij - m_i} / (sum e^{d - m_i} + 1e-6), m_i the largest positive distance;
                w-_ij = e^{-d_ij} / (sum e^{-d} + 1e-6): negatives fade out beyond distances of about 14.
    stable      both are true softmaxes over their own set; an anchor without negatives has loss 0.

Shapes   feat [N, D], labels [N] int64; out: loss [N], or [] for the reduction "mean" or "sum"; saved [7, N] (slope,
         largest positive, 1/z+, p, least negative, 1/z-, q); on the CPU the mean row [D]; up to KEEP_DISTANCES rows, on
         a GPU up to SMALL, the distances [N, N]. Float32, or float64 for float64. d_ij =
         sqrt(max(||f_i - f_j||^2, 1e-12)), no gradient through a clamped entry.
Backward with c_ij = dL/dd_ij and s_ij = (c_ij + c_ji) / d_ij, grad_i = f_i sum_j s_ij - sum_j s_ij f_j. From the saved
         values c_ij = slope_i e^{d_ij - m_i} (1 + d_ij - p_i) / z+_i for positives and
         -slope_i e^{-d_ij} (1 - d_ij + q_i) / z-_i for negatives; since 1e-6 does not move with m_i, the largest
         positive also gets -slope_i p_i 1e-6 / z+_i.
Memory   mean-free rows (CPU: twice, as rows and packed) and the gradient, O(N) state, one tile (CPU) or one strip of
         512 x N (CUDA): N x N only where distances are kept, with D / 128 times as much (CUDA) while they are made.
Launches on a GPU up to SMALL rows one forward and one backward, see weighted_triplet_small.
Floor    3 products N x N x D (forward, recomputed distances, gradient); 2 on the CPU, where each pair of tiles is
         multiplied once.
Measured 1.6, 0.49, 0.47 and 0.37 of the platform's three products for 64, 512, 2048 and 8192 rows of 2048 on two cores
         of an AMD EPYC, forward and backward.
Source   specs idkl 13; Ye et al. 2021 (AGW), weighted regularised triplet. Recomputation as in FlashAttention.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows, product, weighted_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._reduction import grad_of_rows, reduced, reduced_shape
from vifast.kernels._registry import Op, check
from vifast.kernels._small import SMALL
from vifast.kernels._softmax import store_states
from vifast.kernels._tile import (
    CLOSE_PAIR,
    fold_grid,
    gpu_rows,
    input_precision,
    mean_row,
    merge_softmax,
    pull,
    softmax_update,
    sqdist_tile,
    tile_launch,
)
from vifast.kernels.weighted_triplet_small import coefficients, finish, pull_few, weigh

EPS = 1e-6
FLOOR = 1e-12
SAVED = 7
# Up to so many rows the CPU keeps the distances for the backward: 256 KiB, and one product of three less.
KEEP_DISTANCES = 256
# Rows of a strip (CUDA) and of a tile (CPU): the product with the weights wants a depth of 512, at 256 it takes 1.7 x.
STRIP = 512


def _distances(x: Tensor) -> Tensor:
    sq = x.square().sum(1)
    return (sq.unsqueeze(1) + sq - 2 * (x @ x.T)).clamp(min=FLOOR).sqrt()


def weighted_triplet_ref(
    feat: Tensor, labels: Tensor, stable: bool, precision: str, reduction: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = feat.to(torch.promote_types(feat.dtype, torch.float32))
    if len(x) == 0:
        return tuple(torch.zeros_like(out) for out in _alloc(feat, labels, stable, precision, reduction))
    dist = _distances(x)
    same = labels.unsqueeze(1) == labels
    eps = 0.0 if stable else EPS
    top = dist.masked_fill(~same, -torch.inf).amax(1)
    least = dist.masked_fill(same, torch.inf).amin(1) if stable else torch.zeros_like(top)
    has_neg = (~same).any(1)
    w_pos = (dist - top.unsqueeze(1)).exp().masked_fill(~same, 0.0)
    w_neg = (least.unsqueeze(1) - dist).masked_fill(same, -torch.inf).exp()
    w_neg = w_neg.masked_fill(~has_neg.unsqueeze(1), 0.0)
    inv_pos, z_neg = 1 / (w_pos.sum(1) + eps), w_neg.sum(1) + eps
    inv_neg = torch.where(z_neg == 0, 0.0, 1 / z_neg)
    p, q = (w_pos * dist).sum(1) * inv_pos, (w_neg * dist).sum(1) * inv_neg
    active = has_neg if stable else torch.ones_like(has_neg)
    loss = torch.where(active, softplus(p - q), 0.0)
    slope = torch.where(active, torch.sigmoid(p - q), 0.0)
    least = torch.where(has_neg, least, 0.0)
    _, _, mean, kept = _alloc(feat, labels, stable, precision, reduction)
    mean = x.mean(0) if len(mean) else mean
    kept = dist.clone() if kept.dim() == 2 else kept
    loss = reduced(loss, reduction)
    return loss, torch.stack((slope, top, inv_pos, p, least, inv_neg, q)), mean, kept


@triton.jit
def _fold_kernel(
    x_ptr, mean_ptr, labels_ptr, stats_ptr, n, n_cols, n_splits,
    STABLE: tl.constexpr, FLOOR_: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Online softmaxes of BLOCK_M anchors over every n_splits-th block of columns; stats is [6, n_splits, n]."""
    split = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    label = tl.load(labels_ptr + row, mask=row < n, other=0)
    m_pos = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    m_neg = tl.full((BLOCK_M,), float("-inf") if STABLE else 0.0, tl.float32)
    z_pos = tl.zeros((BLOCK_M,), tl.float32)
    t_pos = tl.zeros((BLOCK_M,), tl.float32)
    z_neg = tl.zeros((BLOCK_M,), tl.float32)
    t_neg = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(split * BLOCK_N, n, n_splits * BLOCK_N):
        col = tl.cast(start, tl.int64) + tl.arange(0, BLOCK_N)
        other = tl.load(labels_ptr + col, mask=col < n, other=0)
        sq = sqdist_tile(x_ptr, x_ptr, mean_ptr, row, col, n, n, n_cols, CLOSE, True, PRECISION, BLOCK_K)
        d = tl.sqrt_rn(tl.where(sq < FLOOR_, FLOOR_, sq))
        inside = col[None, :] < n
        same = label[:, None] == other[None, :]
        pos = inside & same
        neg = inside & (same == 0)
        m_pos, z_pos, t_pos = softmax_update(d, d, pos, m_pos, z_pos, t_pos, True)
        m_neg, z_neg, t_neg = softmax_update(d, -d, neg, m_neg, z_neg, t_neg, STABLE)
    at = stats_ptr + tl.cast(split, tl.int64) * n + row
    store_states(at, tl.cast(n_splits, tl.int64) * n, (m_pos, z_pos, t_pos, m_neg, z_neg, t_neg), row < n)


@triton.jit
def _finish_kernel(
    stats_ptr, loss_ptr, saved_ptr, n, n_splits, STABLE: tl.constexpr, EPS_: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    m_pos, z_pos, t_pos = merge_softmax(stats_ptr, row, n, n_splits, 0, inside)
    m_neg, z_neg, t_neg = merge_softmax(stats_ptr, row, n, n_splits, 1, inside)
    finish(m_pos, z_pos, t_pos, m_neg, z_neg, t_neg, loss_ptr, saved_ptr, row, n, STABLE, EPS_)


weighted_triplet = Op("weighted_triplet", weighted_triplet_ref)


@weighted_triplet.register_fake
def _alloc(feat, labels, stable, precision, reduction):
    fits = feat.dim() == 2 and labels.dim() == 1 and labels.size(0) == feat.size(0)
    check(fits, lambda: f"weighted_triplet: expected [N, D] and [N], got {list(feat.shape)} and {list(labels.shape)}")
    n, d = feat.shape
    acc = torch.promote_types(feat.dtype, torch.float32)
    native = feat.device.type == "cpu" and acc == torch.float32
    mean = (d,) if native else (0,)
    dist = (n, n) if acc == torch.float32 and n <= (KEEP_DISTANCES if native else SMALL) else (0,)
    shapes = reduced_shape(n, reduction), (SAVED, n), mean, dist
    return tuple(feat.new_empty(shape, dtype=acc) for shape in shapes)


@weighted_triplet.register_kernel("cpu")
def _cpu(feat, labels, stable, precision, reduction):
    loss, saved, mean, dist = _alloc(feat, labels, stable, precision, "none")
    kept = dist if dist.dim() == 2 else None
    _C.wrt_forward(float_rows(feat), labels.contiguous(), stable, loss, saved, mean, kept, torch.get_num_threads())
    return reduced(loss, reduction), saved, mean, dist


@weighted_triplet.register_kernel("cuda")
def _triton(feat, labels, stable, precision, reduction):
    if feat.size(0) == 0:
        return weighted_triplet_ref(feat, labels, stable, precision, reduction)
    x, labels = gpu_rows(feat), labels.contiguous()
    n, n_cols = x.shape
    constants = {"STABLE": stable, "EPS_": EPS, "FLOOR_": FLOOR}
    if n <= SMALL:
        loss, saved, mean, dist = _alloc(feat, labels, stable, precision, reduction)
        with torch.cuda.device_of(x):
            weigh(x, labels, loss, saved, dist, precision, reduction, constants)
        return loss, saved, mean, dist
    launch = tile_launch(n, n)
    rows, splits = fold_grid(n, n, launch)
    stats = x.new_empty(6, splits, n, dtype=torch.float32)
    loss, saved, *unused = _alloc(feat, labels, stable, precision, "none")
    with torch.cuda.device_of(x):
        _fold_kernel[(rows, splits)](
            x, mean_row(x, x), labels, stats, n, n_cols, splits, STABLE=stable, FLOOR_=FLOOR, CLOSE=CLOSE_PAIR,
            PRECISION=input_precision(precision), **launch,
        )  # fmt: skip
        _finish_kernel[(triton.cdiv(n, 128),)](stats, loss, saved, n, splits, STABLE=stable, EPS_=EPS, BLOCK=128)
    return reduced(loss, reduction), saved, *unused


def _backward_ref(
    grad: Tensor,
    saved: Tensor,
    mean: Tensor,
    dist: Tensor,
    feat: Tensor,
    labels: Tensor,
    stable: bool,
    precision: str,
    reduction: str,
) -> Tensor:
    x = feat.to(saved.dtype)
    if len(x) == 0:
        return torch.zeros_like(feat)
    x = x - x.nan_to_num(0.0, 0.0, 0.0).mean(0)
    dist = _distances(x)
    slope, top, inv_pos, p, least, inv_neg, q = (row.unsqueeze(1) for row in saved)
    slope = slope * grad_of_rows(grad, len(x), reduction).unsqueeze(1)
    pos = (dist - top).exp() * (1 + dist - p)
    if not stable:
        at_top = dist == dist.masked_fill(labels.unsqueeze(1) != labels, -torch.inf).amax(1, keepdim=True)
        pos = pos - torch.where(at_top, EPS * p, 0.0)
    neg = (least - dist).exp() * (1 - dist + q)
    c = slope * torch.where(labels.unsqueeze(1) == labels, inv_pos * pos, -inv_neg * neg)
    s = ((c + c.T) / dist).masked_fill(dist <= FLOOR**0.5, 0.0).fill_diagonal_(0.0)
    return torch.addmm(s.sum(1, keepdim=True) * x, s, x, alpha=-1).to(feat.dtype)


weighted_triplet_backward = Op("weighted_triplet_backward", _backward_ref)


@weighted_triplet_backward.register_fake
def _alloc_backward(grad, saved, mean, dist, feat, labels, stable, precision, reduction):
    return torch.empty_like(feat, memory_format=torch.contiguous_format)


@weighted_triplet_backward.register_kernel("cpu")
def _cpu_backward(grad, saved, mean, dist, feat, labels, stable, precision, reduction):
    x, threads = float_rows(feat), torch.get_num_threads()
    labels, grad = labels.contiguous(), grad_of_rows(grad, len(x), reduction)
    x_c = torch.empty_like(x)
    _C.subtract(x, mean, x_c, threads)
    if dist.dim() == 2:
        weights = dist.clone()
        _C.WrtBackward(x, None, labels, stable, grad, saved, threads).weigh(weights, 0, 0, threads)
        return product(weights, x_c.T, torch.empty_like(x)).to(feat.dtype)
    backward = _C.WrtBackward(x, mean, labels, stable, grad, saved, threads)
    (out,) = weighted_rows([x_c], lambda tile, i, j: backward.weigh(tile, i, j, threads), STRIP)
    return out.to(feat.dtype)


@triton.jit
def _strip_kernel(
    x_ptr, mean_ptr, labels_ptr, grad_ptr, saved_ptr, strip_ptr, row0, n_rows, n, n_cols,
    STABLE: tl.constexpr, EPS_: tl.constexpr, FLOOR_: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """s_ij for rows row0 .. row0 + n_rows against all columns, one tile a program."""
    local = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = row0 + local
    col = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in = (local < n_rows) & (row < n)
    col_in = col < n
    sq = sqdist_tile(x_ptr, x_ptr, mean_ptr, row, col, n, n, n_cols, CLOSE, True, PRECISION, BLOCK_K)
    d = tl.sqrt_rn(tl.where(sq < FLOOR_, FLOOR_, sq))
    same = (
        tl.load(labels_ptr + row, mask=row_in, other=0)[:, None]
        == tl.load(labels_ptr + col, mask=col_in, other=0)[None, :]
    )
    c = coefficients(d, same, grad_ptr, 1, saved_ptr, row, row_in, n, 1, STABLE, EPS_)
    c += coefficients(d, same, grad_ptr, 1, saved_ptr, col, col_in, n, 0, STABLE, EPS_)
    s = tl.where((sq <= FLOOR_) | (row[:, None] == col[None, :]), 0.0, c / d)
    mask = (local[:, None] < n_rows) & col_in[None, :]
    tl.store(strip_ptr + local[:, None] * tl.cast(n, tl.int64) + col[None, :], s, mask=mask)


@weighted_triplet_backward.register_kernel("cuda")
def _triton_backward(grad, saved, mean, dist, feat, labels, stable, precision, reduction):
    if feat.size(0) == 0:
        return _backward_ref(grad, saved, mean, dist, feat, labels, stable, precision, reduction)
    x, labels = gpu_rows(feat), labels.contiguous()
    n, n_cols = x.shape
    if n <= SMALL:
        out = _alloc_backward(grad, saved, mean, dist, feat, labels, stable, precision, reduction)
        with torch.cuda.device_of(x):
            constants = {"STABLE": stable, "EPS_": EPS, "FLOOR_": FLOOR}
            pull_few(grad.contiguous(), saved, dist, x, labels, out, precision, reduction, constants)
        return out
    grad = grad_of_rows(grad, n, reduction)
    launch = tile_launch(n, n) | {"BLOCK_N": 32}  # fourteen values an anchor beside the tile: 64 spill on sm_100
    strip = x.new_empty(min(STRIP, n), n, dtype=torch.float32)
    with torch.cuda.device_of(x):
        mean = mean_row(x, x)
        x_c = x.float() - mean
        out = torch.empty_like(x_c)
        for start in range(0, n, STRIP):
            rows = min(STRIP, n - start)
            grid = (triton.cdiv(rows, launch["BLOCK_M"]), triton.cdiv(n, launch["BLOCK_N"]))
            _strip_kernel[grid](
                x, mean, labels, grad, saved, strip, start, rows, n, n_cols, STABLE=stable, EPS_=EPS, FLOOR_=FLOOR,
                CLOSE=CLOSE_PAIR, PRECISION=input_precision(precision), **launch,
            )  # fmt: skip
            pull(strip[:rows], start, x_c, out)
    return out.to(feat.dtype)


def _setup(ctx, inputs, output):
    feat, labels, *ctx.how = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], feat, labels)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 5
    return weighted_triplet_backward(grad, *ctx.saved_tensors, *ctx.how), None, None, None, None


weighted_triplet.register_autograd(_backward, _setup)
