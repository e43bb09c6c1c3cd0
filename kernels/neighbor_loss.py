r"""neighbor_loss: KL(uniform over the own identity || softmax of minus distance over all others), as an online softmax.

    loss_i = log sum_{j != i} exp(-d_ij / t) + mean_{j in P_i} d_ij / t - log |P_i|,  P_i = { j != i, l_j = l_i }

Shapes   feat [N, D], labels [N] int64; reference [M, D], ref_labels [M], whose rows are the neighbors then and none is
         left out, or None. Out: loss [N], or [] for the reduction "mean" or "sum"; saved [3, N] (least distance, 1 / z,
         1 / |P|, all 0 for an idle row); on the CPU the mean row [D]; of few rows the distances [N, M] (up to
         KEEP_DISTANCES on the CPU, SMALL on a GPU). Float32, or float64 for float64.
metric   distances of batch_hard: those of cosines are of rows that the caller made unit.
Defined  a row without positives has loss 0. A non-finite row, or one whose square overflows, is nobody's neighbor and
         its loss is NaN; in a reference it makes every loss NaN. No gradient flows from a NaN.
Backward with c_ij = g_i / t * ([j in P_i] / |P_i| - e^{(least_i - d_ij) / t} / z_i), s_ij = c_ij / d_ij (euclidean, 0
         where clamped), 2 c_ij (sqeuclidean) or c_ij (cosine): grad_i = sum_j (s_ij + s_ji) (f_i - f_j), or with a
         reference sum_j s_ij (f_i - r_j), and sum_i s_ij (r_j - f_i) for its rows.
Memory   mean-free rows (CPU: twice, as rows and packed) and the gradient, O(N) state, one tile (CPU) or one strip of
         512 x M (CUDA): N x M only where distances are kept, with D / 128 times as much (CUDA) while they are made.
Launches on a GPU up to SMALL rows, of the reference too, one forward and one backward, see neighbor_loss_small.
Floor    3 products N x M x D (forward, recomputed distances, gradient), 4 with a reference that takes a gradient; on
         the CPU 2 for a set against itself, where each pair of tiles is multiplied once.
Measured 1.6, 0.88, 0.56 and 0.44 of the platform's three products for 64, 128, 512 and 2048 rows of 2048 on two cores
         of an AMD EPYC, cosines, forward and backward.
Source   spec idkl 4 (the unused "Fb" loss); Khosla et al. 2020 (SupCon). Recomputation as in FlashAttention.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows, product, weighted_pairs, weighted_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._reduction import grad_of_rows, reduced, reduced_shape
from vifast.kernels._registry import Op, check
from vifast.kernels._small import SMALL
from vifast.kernels._tile import (
    CLOSE_PAIR,
    fold_grid,
    gpu_rows,
    input_precision,
    mean_row,
    merge_softmax,
    pull,
    pull_back,
    sqdist_tile,
    tile_launch,
)
from vifast.kernels.batch_hard import FLOOR, SCALE
from vifast.kernels.batch_hard_small import distance
from vifast.kernels.neighbor_loss_small import coefficients, factors, finish, look, pull_few, search
from vifast.kernels.pairwise_distance import pairwise_distance_backward, pairwise_distance_ref

SAVED = 3
KEEP_DISTANCES = 256  # rows, as in weighted_triplet
STRIP = 512


def _kind(metric: str, temperature: float) -> tuple[bool, float, float]:
    """Whether distances are rooted, the least square under the root, and what times a distance is minus its logit."""
    root = metric == "euclidean"
    return root, FLOOR if root else 0.0, SCALE[metric] / temperature


def _pairs(feat, labels, reference, ref_labels, root, floor):
    """Sound rows, distances of all pairs, who is a neighbor, who of these a positive, and which rows are spoilt."""
    acc = torch.promote_types(feat.dtype, torch.float32)
    sound, x = _sound(feat.to(acc))
    to_sound, y = (sound, None) if reference is None else _sound(reference.to(acc))
    others = sound.unsqueeze(1) & to_sound
    if reference is None:
        others = others & torch.eye(len(x), dtype=torch.bool, device=x.device).logical_not()
    positive = others & (labels.unsqueeze(1) == (labels if reference is None else ref_labels))
    spoilt = ~sound if reference is None else ~sound | ~to_sound.all()
    return x, y, pairwise_distance_ref(x, y, floor, root, "exact"), others, positive, spoilt


def _sound(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows are finite, and the rows with the others set to 0, so that they spoil no gradient but their own."""
    sound = x.isfinite().all(1)
    return sound, torch.where(sound.unsqueeze(1), x, 0.0)


def neighbor_loss_ref(
    feat: Tensor,
    labels: Tensor,
    reference: Tensor | None,
    ref_labels: Tensor | None,
    metric: str,
    temperature: float,
    precision: str,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    root, floor, factor = _kind(metric, temperature)
    x, _, dist, others, positive, spoilt = _pairs(feat, labels, reference, ref_labels, root, floor)
    count, logits = positive.sum(1), -factor * dist
    # The lowest number and not -inf: a row without others would have the softmax of nothing.
    logits = torch.where(others, logits, torch.finfo(dist.dtype).min)
    partition, top = (logits.logsumexp(1), logits.amax(1)) if dist.size(1) else 2 * (dist.sum(1),)
    near = factor * torch.where(positive, dist, 0.0).sum(1) / count.clamp(min=1)
    rows = torch.where(count > 0, partition + near - count.clamp(min=1).log(), 0.0)
    loss = reduced(torch.where(spoilt, torch.nan, rows), reduction)
    saved = torch.stack((top / -factor, (top - partition).exp(), 1 / count.to(x.dtype))).masked_fill(
        spoilt | (count == 0), 0.0
    )
    _, _, mean, kept = _alloc(feat, labels, reference, ref_labels, metric, temperature, precision, reduction)
    mean = x.mean(0) if len(mean) and len(x) else torch.zeros_like(mean)
    return loss, saved, mean, dist.masked_fill(~others, torch.inf) if kept.dim() == 2 else kept


@triton.jit
def _fold_kernel(
    x_ptr, y_ptr, mean_ptr, labels_ptr, ref_labels_ptr, stats_ptr, factor, n, m, n_cols, n_splits,
    SAME: tl.constexpr, ROOT: tl.constexpr, FLOOR_: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Softmaxes of BLOCK_M rows over every n_splits-th block of neighbors; stats is [6, n_splits, n]."""
    factor = tl.cast(factor, tl.float32)
    split = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    label = tl.load(labels_ptr + row, mask=row < n, other=0)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    z = tl.zeros((BLOCK_M,), tl.float32)
    zero = tl.zeros((BLOCK_M,), tl.float32)
    count = tl.zeros((BLOCK_M,), tl.float32)
    near = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(split * BLOCK_N, m, n_splits * BLOCK_N):
        col = tl.cast(start, tl.int64) + tl.arange(0, BLOCK_N)
        other = tl.load(ref_labels_ptr + col, mask=col < m, other=0)
        sq = sqdist_tile(x_ptr, y_ptr, mean_ptr, row, col, n, m, n_cols, CLOSE, SAME, PRECISION, BLOCK_K)
        d = distance(sq, ROOT, 1.0, FLOOR_)
        same = label[:, None] == other[None, :]
        top, z, count, near = look(d, same, row, col, m, factor, top, z, count, near, SAME)
    out = tl.cast(split, tl.int64) * n + row
    side = tl.cast(n_splits, tl.int64) * n
    stats = (top, z, zero, zero, count, near)  # positives are a softmax of equal logits
    for k in tl.static_range(6):
        tl.store(stats_ptr + k * side + out, stats[k], mask=row < n)


@triton.jit
def _finish_kernel(stats_ptr, loss_ptr, saved_ptr, factor, n, n_splits, BLOCK: tl.constexpr):
    factor = tl.cast(factor, tl.float32)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    top, z, _ = merge_softmax(stats_ptr, row, n, n_splits, 0, inside, factor)
    _, count, near = merge_softmax(stats_ptr, row, n, n_splits, 1, inside)
    finish(top, z, count, near, loss_ptr, saved_ptr, row, n, factor)


neighbor_loss = Op("neighbor_loss", neighbor_loss_ref)


@neighbor_loss.register_fake
def _alloc(feat, labels, reference, ref_labels, metric, temperature, precision, reduction):
    y, y_labels = (feat, labels) if reference is None else (reference, ref_labels)
    fits = feat.dim() == 2 and y.dim() == 2 and feat.size(1) == y.size(1)
    check(fits, lambda: f"neighbor_loss: expected [N, D] and [M, D], got {list(feat.shape)} and {list(y.shape)}")
    fits = labels.size(0) == feat.size(0) and y_labels.size(0) == y.size(0)
    check(fits, lambda: "neighbor_loss: one label per row")
    (n, d), m, acc = feat.shape, y.size(0), torch.promote_types(feat.dtype, torch.float32)
    native = feat.device.type == "cpu" and acc == torch.float32
    few = acc == torch.float32 and max(n, m) <= (KEEP_DISTANCES if native else SMALL)
    shapes = reduced_shape(n, reduction), (SAVED, n), (d,) if native else (0,), (n, m) if few else (0,)
    return tuple(feat.new_empty(shape, dtype=acc) for shape in shapes)


def _empty(feat: Tensor, reference: Tensor | None) -> bool:
    return len(feat) == 0 or (reference is not None and len(reference) == 0)


def _launch(n: int, m: int) -> dict[str, int]:
    """With Triton 3.6, 64 columns spill on sm_80, and the 168 registers at which ptxas stops by itself on sm_100."""
    return tile_launch(n, m) | {"BLOCK_N": 32, "maxnreg": 255}


@neighbor_loss.register_kernel("cpu")
def _cpu(feat, labels, reference, ref_labels, metric, temperature, precision, reduction):
    args = feat, labels, reference, ref_labels, metric, temperature, precision
    if _empty(feat, reference):
        return neighbor_loss_ref(*args, reduction)
    loss, saved, mean, dist = _alloc(*args, "none")
    kept = dist if dist.dim() == 2 else None
    y = (None, None) if reference is None else (float_rows(reference), ref_labels.contiguous())
    sets = float_rows(feat), labels.contiguous(), *y
    _C.neighbor_forward(*sets, *_kind(metric, temperature), loss, saved, mean, kept, torch.get_num_threads())
    return reduced(loss, reduction), saved, mean, dist


@neighbor_loss.register_kernel("cuda")
def _triton(feat, labels, reference, ref_labels, metric, temperature, precision, reduction):
    args = feat, labels, reference, ref_labels, metric, temperature, precision
    if _empty(feat, reference):
        return neighbor_loss_ref(*args, reduction)
    x, x_labels = gpu_rows(feat), labels.contiguous()
    y, y_labels = (x, x_labels) if reference is None else (gpu_rows(reference), ref_labels.contiguous())
    (n, n_cols), m, (root, floor, factor) = x.shape, len(y), _kind(metric, temperature)
    if max(n, m) <= SMALL:
        out = _alloc(*args, reduction)
        with torch.cuda.device_of(x):
            search(x, x_labels, y, y_labels, factor, precision, reduction, out, {"ROOT": root, "FLOOR_": floor})
        return out
    launch = _launch(n, m)
    rows, splits = fold_grid(n, m, launch)
    stats = x.new_empty(6, splits, n, dtype=torch.float32)
    loss, saved, *unused = _alloc(*args, "none")
    with torch.cuda.device_of(x):
        _fold_kernel[(rows, splits)](
            x, y, mean_row(x, y), x_labels, y_labels, stats, factor, n, m, n_cols, splits, SAME=y is x, ROOT=root,
            FLOOR_=floor, CLOSE=CLOSE_PAIR, PRECISION=input_precision(precision), **launch,
        )  # fmt: skip
        _finish_kernel[(triton.cdiv(n, 128),)](stats, loss, saved, factor, n, splits, BLOCK=128)
    return reduced(loss, reduction), saved, *unused


def _backward_ref(
    grad: Tensor,
    saved: Tensor,
    mean: Tensor,
    dist: Tensor,
    feat: Tensor,
    labels: Tensor,
    reference: Tensor | None,
    ref_labels: Tensor | None,
    metric: str,
    temperature: float,
    precision: str,
    reduction: str,
    want_feat: bool,
    want_reference: bool,
) -> tuple[Tensor, Tensor]:
    root, floor, factor = _kind(metric, temperature)
    x, y, distances, others, positive, _ = _pairs(feat, labels, reference, ref_labels, root, floor)
    least, inv_z, inv_count = saved.unsqueeze(2)
    weight = inv_z * torch.where(others, factor * (least - distances), -torch.inf).exp()
    share = torch.where(positive, inv_count, 0.0)
    c = factor * grad_of_rows(grad, len(x), reduction).unsqueeze(1) * (share - weight)
    grads = pairwise_distance_backward.definition(c.to(x.dtype), distances, x, y, floor, root)
    wanted = zip(grads, (want_feat, want_reference), strict=True)
    return tuple(g.to(feat.dtype) if want else feat.new_empty(0) for g, want in wanted)


neighbor_loss_backward = Op("neighbor_loss_backward", _backward_ref)


@neighbor_loss_backward.register_fake
def _alloc_backward(
    grad, saved, mean, dist, feat, labels, reference, ref_labels, metric, temperature, precision, reduction,
    want_feat, want_reference,
):  # fmt: skip
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if want else feat.new_empty(0)
        for x, want in ((feat, want_feat), (reference, want_reference))
    )


@neighbor_loss_backward.register_kernel("cpu")
def _cpu_backward(
    grad, saved, mean, dist, feat, labels, reference, ref_labels, metric, temperature, precision, reduction,
    want_feat, want_reference,
):  # fmt: skip
    args = feat, labels, reference, ref_labels, metric, temperature, precision, reduction, want_feat, want_reference
    if _empty(feat, reference):
        return _backward_ref(grad, saved, mean, dist, *args)
    threads, kept = torch.get_num_threads(), dist.dim() == 2
    x, y = (None if rows is None else float_rows(rows) for rows in (feat, reference))
    sets = x, labels.contiguous(), y, None if y is None else ref_labels.contiguous()
    rows = grad_of_rows(grad, len(x), reduction)
    origin = None if kept else mean
    backward = _C.NeighborBackward(*sets, *_kind(metric, temperature), origin, rows, saved, threads)

    def weigh(tile, i, j):
        if kept:
            tile.copy_(dist)
        backward.weigh(tile, i, j, threads)

    def moved(rows, wanted):
        if not wanted:
            return None
        out = torch.empty_like(rows)
        _C.subtract(rows, mean, out, threads)
        return out

    x_c = moved(x, True)
    if y is None and kept:
        weights = torch.empty_like(dist)
        weigh(weights, 0, 0)
        grads = product(weights, x_c.T, torch.empty_like(x)), None
    elif y is None:
        grads = *weighted_rows([x_c], weigh, STRIP), None
    else:
        grads = weighted_pairs(x_c, moved(y, True), weigh, backward.sums, (want_feat, want_reference), STRIP)
    return tuple(feat.new_empty(0) if g is None else g.to(feat.dtype) for g in grads)


@triton.jit
def _strip_kernel(
    x_ptr, y_ptr, mean_ptr, labels_ptr, ref_labels_ptr, grad_ptr, saved_ptr, strip_ptr, factor, row0, n_rows, n, m,
    n_cols, SAME: tl.constexpr, ROOT: tl.constexpr, FLOOR_: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Factors of differences for rows row0 .. row0 + n_rows with all neighbors, one tile a program."""
    factor = tl.cast(factor, tl.float32)
    local = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = row0 + local
    col = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in = (local < n_rows) & (row < n)
    sq = sqdist_tile(x_ptr, y_ptr, mean_ptr, row, col, n, m, n_cols, CLOSE, SAME, PRECISION, BLOCK_K)
    d = distance(sq, ROOT, 1.0, FLOOR_)
    same = (
        tl.load(labels_ptr + row, mask=row_in, other=0)[:, None]
        == tl.load(ref_labels_ptr + col, mask=col < m, other=0)[None, :]
    )
    c = coefficients(d, same, grad_ptr, 1, saved_ptr, row, row_in, n, factor, 1)
    if SAME:
        c += coefficients(d, same, grad_ptr, 1, saved_ptr, col, col < m, n, factor, 0)
        c = tl.where(row[:, None] == col[None, :], 0.0, c)
    mask = (local[:, None] < n_rows) & (col[None, :] < m)
    at = strip_ptr + local[:, None] * tl.cast(m, tl.int64) + col[None, :]
    tl.store(at, factors(c, d, ROOT, FLOOR_), mask=mask)


@neighbor_loss_backward.register_kernel("cuda")
def _triton_backward(
    grad, saved, mean, dist, feat, labels, reference, ref_labels, metric, temperature, precision, reduction,
    want_feat, want_reference,
):  # fmt: skip
    args = feat, labels, reference, ref_labels, metric, temperature, precision, reduction, want_feat, want_reference
    if _empty(feat, reference):
        return _backward_ref(grad, saved, mean, dist, *args)
    x, x_labels = gpu_rows(feat), labels.contiguous()
    y, y_labels = (x, x_labels) if reference is None else (gpu_rows(reference), ref_labels.contiguous())
    (n, n_cols), m, (root, floor, factor) = x.shape, len(y), _kind(metric, temperature)
    how, wanted = {"ROOT": root, "FLOOR_": floor}, (want_feat, want_reference)
    if max(n, m) <= SMALL:
        out = [torch.empty_like(rows) if want else None for rows, want in zip((x, y), wanted, strict=True)]
        with torch.cuda.device_of(x):
            sets = x, x_labels, y, y_labels
            pull_few(grad.contiguous(), saved, dist, *sets, factor, precision, reduction, out, how)
        return tuple(feat.new_empty(0) if g is None else g for g in out)
    grad = grad_of_rows(grad, n, reduction)
    launch = _launch(n, m)
    strip = x.new_empty(min(STRIP, n), m, dtype=torch.float32)
    with torch.cuda.device_of(x):
        mean = mean_row(x, y)
        x_c = (x.float() - mean).nan_to_num_(0.0, 0.0, 0.0)
        y_c = x_c if y is x else (y.float() - mean).nan_to_num_(0.0, 0.0, 0.0)
        to_x = torch.empty_like(x_c) if want_feat else None
        to_y = torch.zeros_like(y_c) if want_reference else None
        for start in range(0, n, STRIP):
            rows = min(STRIP, n - start)
            grid = (triton.cdiv(rows, launch["BLOCK_M"]), triton.cdiv(m, launch["BLOCK_N"]))
            _strip_kernel[grid](
                x, y, mean, x_labels, y_labels, grad, saved, strip, factor, start, rows, n, m, n_cols, SAME=y is x,
                CLOSE=CLOSE_PAIR, PRECISION=input_precision(precision), **how, **launch,
            )  # fmt: skip
            if to_x is not None:
                pull(strip[:rows], start, x_c, to_x, y_c)
            if to_y is not None:
                pull_back(strip[:rows], start, x_c, to_y, y_c)
    return tuple(feat.new_empty(0) if g is None else g.to(feat.dtype) for g in (to_x, to_y))


def _setup(ctx, inputs, output):
    feat, labels, reference, ref_labels, *ctx.how = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], feat, labels, reference, ref_labels)


def _backward(ctx, grad, *_):
    wanted = ctx.needs_input_grad[-8], ctx.needs_input_grad[-6]
    if grad is None or not any(wanted):
        return (None,) * 8
    to_x, to_y = neighbor_loss_backward(grad, *ctx.saved_tensors, *ctx.how, *wanted)
    return to_x if wanted[0] else None, None, to_y if wanted[1] else None, *(None,) * 5


neighbor_loss.register_autograd(_backward, _setup)
