r"""weighted_triplet: the weighted regularised triplet loss (WRT) of every anchor, as an online softmax.

    loss_i = log(1 + exp(p_i - q_i)),  p_i = sum_j w+_ij d_ij over positives (anchor included),  q_i over negatives

    published   w+_ij = e^{d_ij - m_i} / (sum e^{d - m_i} + 1e-6), m_i the largest positive distance;
                w-_ij = e^{-d_ij} / (sum e^{-d} + 1e-6): negatives fade out beyond distances of about 14.
    stable      both are true softmaxes over their own set; an anchor without negatives has loss 0.

Shapes   feat [N, D], labels [N] int64; out: loss [N], saved [7, N] (slope, largest positive, 1/z+, p, least negative,
         1/z-, q), on the CPU the mean row [D], and up to KEEP_DISTANCES rows the distances [N, N]. Float32, or
         float64 for float64. d_ij = sqrt(max(||f_i - f_j||^2, 1e-12)), no gradient through a clamped entry.
Backward with c_ij = dL/dd_ij and s_ij = (c_ij + c_ji) / d_ij, grad_i = f_i sum_j s_ij - sum_j s_ij f_j. From the saved
         values c_ij = slope_i e^{d_ij - m_i} (1 + d_ij - p_i) / z+_i for positives and
         -slope_i e^{-d_ij} (1 - d_ij + q_i) / z-_i for negatives; since 1e-6 does not move with m_i, the largest
         positive also gets -slope_i p_i 1e-6 / z+_i.
Memory   mean-free rows (CPU: twice, as rows and packed) and the gradient, O(N) state, one tile (CPU) or one strip of
         512 x N (CUDA): no N x N beyond KEEP_DISTANCES rows.
Launches on a GPU up to SMALL rows three forward and three backward, the mean row, the weights and the product with
         them: either would need a program to wait for all others, or to form all distances again for each block of
         columns.
Floor    3 products N x N x D (forward, recomputed distances, gradient); 2 on the CPU, where each pair of tiles is
         multiplied once.
Measured 1.2, 0.51, 0.35 and 0.43 of the platform's three products for 64, 512, 2048 and 8192 rows of 2048 on two cores
         of an AMD EPYC, forward and backward.
Source   specs idkl 13; Ye et al. 2021 (AGW), weighted regularised triplet. Recomputation as in FlashAttention.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows, product, weighted_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels._tile import (
    CLOSE_PAIR,
    gpu_rows,
    input_precision,
    mean_free,
    mean_row,
    pull,
    softmax_update,
    sqdist_tile,
    tile_launch,
)

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
    feat: Tensor, labels: Tensor, stable: bool, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = feat.to(torch.promote_types(feat.dtype, torch.float32))
    if len(x) == 0:
        return tuple(torch.zeros_like(out) for out in _alloc(feat, labels, stable, precision))
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
    _, _, mean, kept = _alloc(feat, labels, stable, precision)
    mean = x.mean(0) if len(mean) else mean
    kept = dist.clone() if kept.dim() == 2 else kept
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
    out = tl.cast(split, tl.int64) * n + row
    side = tl.cast(n_splits, tl.int64) * n
    tl.store(stats_ptr + out, m_pos, mask=row < n)
    tl.store(stats_ptr + side + out, z_pos, mask=row < n)
    tl.store(stats_ptr + 2 * side + out, t_pos, mask=row < n)
    tl.store(stats_ptr + 3 * side + out, m_neg, mask=row < n)
    tl.store(stats_ptr + 4 * side + out, z_neg, mask=row < n)
    tl.store(stats_ptr + 5 * side + out, t_neg, mask=row < n)


@triton.jit
def _merge(stats_ptr, row, n, n_splits, side, inside):
    """Softmax of one side over all splits."""
    step = tl.cast(n_splits, tl.int64) * n
    base = stats_ptr + 3 * side * step + row
    m = tl.load(base, mask=inside, other=0.0)
    z = tl.load(base + step, mask=inside, other=0.0)
    t = tl.load(base + 2 * step, mask=inside, other=0.0)
    for split in range(1, n_splits):
        at = base + tl.cast(split, tl.int64) * n
        m_s = tl.load(at, mask=inside, other=0.0)
        new = tl.maximum(m, m_s)
        keep = tl.where(new > m, tl.exp(m - new), 1.0)
        take = tl.where(new > m_s, tl.exp(m_s - new), 1.0)
        z = z * keep + tl.load(at + step, mask=inside, other=0.0) * take
        t = t * keep + tl.load(at + 2 * step, mask=inside, other=0.0) * take
        m = new
    return m, z, t


@triton.jit
def _finish_kernel(
    stats_ptr, loss_ptr, saved_ptr, n, n_splits, STABLE: tl.constexpr, EPS_: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    m_pos, z_pos, t_pos = _merge(stats_ptr, row, n, n_splits, 0, inside)
    m_neg, z_neg, t_neg = _merge(stats_ptr, row, n, n_splits, 1, inside)
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
    tl.store(loss_ptr + row, tl.where(idle, 0.0, loss), mask=inside)
    tl.store(saved_ptr + row, tl.where(idle, 0.0, slope), mask=inside)
    tl.store(saved_ptr + n + row, m_pos, mask=inside)
    tl.store(saved_ptr + 2 * n + row, inv_pos, mask=inside)
    tl.store(saved_ptr + 3 * n + row, p, mask=inside)
    tl.store(saved_ptr + 4 * n + row, tl.where(idle, 0.0, -m_neg), mask=inside)
    tl.store(saved_ptr + 5 * n + row, inv_neg, mask=inside)
    tl.store(saved_ptr + 6 * n + row, q, mask=inside)


weighted_triplet = Op("weighted_triplet", weighted_triplet_ref)


@weighted_triplet.register_fake
def _alloc(feat, labels, stable, precision):
    fits = feat.dim() == 2 and labels.dim() == 1 and labels.size(0) == feat.size(0)
    check(fits, lambda: f"weighted_triplet: expected [N, D] and [N], got {list(feat.shape)} and {list(labels.shape)}")
    n, d = feat.shape
    acc = torch.promote_types(feat.dtype, torch.float32)
    native = feat.device.type == "cpu" and acc == torch.float32
    mean = (d,) if native else (0,)
    dist = (n, n) if native and n <= KEEP_DISTANCES else (0,)
    return tuple(feat.new_empty(shape, dtype=acc) for shape in ((n,), (SAVED, n), mean, dist))


@weighted_triplet.register_kernel("cpu")
def _cpu(feat, labels, stable, precision):
    loss, saved, mean, dist = out = _alloc(feat, labels, stable, precision)
    kept = dist if dist.dim() == 2 else None
    _C.wrt_forward(float_rows(feat), labels.contiguous(), stable, loss, saved, mean, kept, torch.get_num_threads())
    return out


@weighted_triplet.register_kernel("cuda")
def _triton(feat, labels, stable, precision):
    if feat.size(0) == 0:
        return weighted_triplet_ref(feat, labels, stable, precision)
    x, labels = gpu_rows(feat), labels.contiguous()
    n, n_cols = x.shape
    launch = tile_launch(n, n)
    rows, cols = triton.cdiv(n, launch["BLOCK_M"]), triton.cdiv(n, launch["BLOCK_N"])
    splits = min(cols, max(1, 256 // rows))  # about two programs per multiprocessor however few the anchors
    stats = x.new_empty(6, splits, n, dtype=torch.float32)
    loss, saved, *unused = _alloc(feat, labels, stable, precision)
    with torch.cuda.device_of(x):
        mean = mean_row(x, x, first=False)
        _fold_kernel[(rows, splits)](
            x, mean, labels, stats, n, n_cols, splits, STABLE=stable, FLOOR_=FLOOR, CLOSE=CLOSE_PAIR,
            PRECISION=input_precision(precision), **launch,
        )  # fmt: skip
        _finish_kernel[(triton.cdiv(n, 128),)](stats, loss, saved, n, splits, STABLE=stable, EPS_=EPS, BLOCK=128)
    return loss, saved, *unused


def _backward_ref(
    grad: Tensor,
    saved: Tensor,
    mean: Tensor,
    dist: Tensor,
    feat: Tensor,
    labels: Tensor,
    stable: bool,
    precision: str,
) -> Tensor:
    x = feat.to(saved.dtype)
    if len(x) == 0:
        return torch.zeros_like(feat)
    x = x - x.nan_to_num(0.0, 0.0, 0.0).mean(0)
    dist = _distances(x)
    slope, top, inv_pos, p, least, inv_neg, q = (row.unsqueeze(1) for row in saved)
    slope = slope * grad.unsqueeze(1)
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
def _alloc_backward(grad, saved, mean, dist, feat, labels, stable, precision):
    return torch.empty_like(feat, memory_format=torch.contiguous_format)


@weighted_triplet_backward.register_kernel("cpu")
def _cpu_backward(grad, saved, mean, dist, feat, labels, stable, precision):
    x, threads = float_rows(feat), torch.get_num_threads()
    labels, grad = labels.contiguous(), grad.contiguous()
    x_c = torch.empty_like(x)
    _C.subtract(x, mean, x_c, threads)
    if dist.dim() == 2:
        weights = dist.clone()
        _C.WrtBackward(x, None, labels, stable, grad, saved, threads).weigh(weights, 0, 0, threads)
        return product(weights, x_c.T, torch.empty_like(x)).to(feat.dtype)
    backward = _C.WrtBackward(x, x_c, labels, stable, grad, saved, threads)
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
    c = _coefficients(d, same, grad_ptr, saved_ptr, row, row_in, n, 1, STABLE, EPS_)
    c += _coefficients(d, same, grad_ptr, saved_ptr, col, col_in, n, 0, STABLE, EPS_)
    s = tl.where((sq <= FLOOR_) | (row[:, None] == col[None, :]), 0.0, c / d)
    mask = (local[:, None] < n_rows) & col_in[None, :]
    tl.store(strip_ptr + local[:, None] * tl.cast(n, tl.int64) + col[None, :], s, mask=mask)


@triton.jit
def _coefficients(
    d,
    same,
    grad_ptr,
    saved_ptr,
    anchor,
    inside,
    n,
    AXIS: tl.constexpr,
    STABLE: tl.constexpr,
    EPS_: tl.constexpr,
):
    """dL/dd of a tile whose anchors lie along the rows (AXIS 1: expand columns) or along the columns (AXIS 0)."""
    slope = tl.load(saved_ptr + anchor, mask=inside, other=0.0) * tl.load(grad_ptr + anchor, mask=inside, other=0.0)
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


@weighted_triplet_backward.register_kernel("cuda")
def _triton_backward(grad, saved, mean, dist, feat, labels, stable, precision):
    if feat.size(0) == 0:
        return _backward_ref(grad, saved, mean, dist, feat, labels, stable, precision)
    x, labels, grad = gpu_rows(feat), labels.contiguous(), grad.contiguous()
    n, n_cols = x.shape
    launch = tile_launch(n, n) | {"BLOCK_N": 32}  # fourteen values an anchor beside the tile: 64 spill on sm_100
    strip = x.new_empty(min(STRIP, n), n, dtype=torch.float32)
    with torch.cuda.device_of(x):
        mean = mean_row(x, x, first=False)
        x_c = mean_free(x, mean)
        out = torch.empty_like(x if x_c is None else x_c)
        for start in range(0, n, STRIP):
            rows = min(STRIP, n - start)
            grid = (triton.cdiv(rows, launch["BLOCK_M"]), triton.cdiv(n, launch["BLOCK_N"]))
            _strip_kernel[grid](
                x, mean, labels, grad, saved, strip, start, rows, n, n_cols, STABLE=stable, EPS_=EPS, FLOOR_=FLOOR,
                CLOSE=CLOSE_PAIR, PRECISION=input_precision(precision), **launch,
            )  # fmt: skip
            pull(strip[:rows], start, x, mean, x_c, out)
    return out.to(feat.dtype)


def _setup(ctx, inputs, output):
    feat, labels, ctx.stable, ctx.precision = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], feat, labels)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 4
    grad_feat = weighted_triplet_backward(grad, *ctx.saved_tensors, ctx.stable, ctx.precision)
    return grad_feat, None, None, None


weighted_triplet.register_autograd(_backward, _setup)
