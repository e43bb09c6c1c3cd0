r"""batch_hard: farthest positive and nearest negative of every anchor, their distances, the triplet loss of the two.

    d_pos[i] = max_{j: l_j = l_i} d(f_i, r_j)     d_neg[i] = min_{j: l_j != l_i} d(f_i, r_j)
    loss[i]  = max(0, d_pos[i] - d_neg[i] + margin), or softplus(d_pos[i] - d_neg[i]) for margin None

Shapes   feat [N, D], labels [N] int64; reference [M, D], ref_labels [M], or None for the set itself, in which case an
         anchor is its own positive. Out: loss [N], or [] for the reduction "mean" or "sum"; d_pos, d_neg [N], float32
         (float64 for float64); i_pos, i_neg [N] int64.
metric   "euclidean": sqrt(max(sq, 1e-12)), no gradient through a clamped entry; "sqeuclidean": sq; "cosine": sq / 2 of
         rows that the caller made unit, which is 1 - cos without its cancellation.
Defined  ties go to the lower index. No positive: (-inf, -1); no negative: (+inf, -1); the loss is then 0. A non-finite
         partner gives NaN and its index; no gradient flows from such an anchor.
Exact    CPU: the product only nominates; the winner is found by direct difference summed in float64, so the result
         does not depend on tiles, threads or BLAS. CUDA: a product of float32 accuracy picks.
Memory   CPU: O(N) state, from 1024 rows on one mean-free copy of the rows. CUDA: O(N), up to SMALL rows D / 128
         matrices of products. Backward: the gradient.
Launches on a GPU up to SMALL rows one forward, see batch_hard_small, and one backward for any number.
Floor    half of one N x N x D product for a set against itself (each pair of tiles is multiplied once on the CPU);
         backward at most 6*N*D*4 bytes read, N*D*4 written.
Measured 4.2, 0.59, 0.37 and 0.30 of the platform's product for 64, 512, 2048 and 8192 rows of 2048 on two cores of an
         AMD EPYC, forward and backward.
Source   specs idkl 4; Hermans et al. 2017, batch-hard.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._reduction import grad_of_rows, reduced, reduced_shape, share_of_row
from vifast.kernels._registry import Op, check
from vifast.kernels._small import SMALL
from vifast.kernels._tile import CLOSE_PAIR, fold_grid, gpu_rows, input_precision, mean_row, sqdist_tile, tile_launch
from vifast.kernels.batch_hard_small import finish, keep_best, keys, mine

FLOOR = 1e-12
SCALE = {"euclidean": 1.0, "sqeuclidean": 1.0, "cosine": 0.5}


def _constants(metric: str, margin: float | None) -> dict:
    """What all kernels are compiled for."""
    return {"ROOT": metric == "euclidean", "SCALE_": SCALE[metric], "SOFT": margin is None, "FLOOR_": FLOOR}


def batch_hard_ref(
    feat: Tensor,
    labels: Tensor,
    reference: Tensor | None,
    ref_labels: Tensor | None,
    metric: str,
    margin: float | None,
    precision: str,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    acc = torch.promote_types(feat.dtype, torch.float32)
    x = feat.to(acc)
    y, y_labels = (x, labels) if reference is None else (reference.to(acc), ref_labels)
    sq = (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * (x @ y.T)).clamp(min=0.0)
    if reference is None:
        sq = torch.where(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0 * x.sum(1), sq)
    same = labels.unsqueeze(1) == y_labels
    d_pos, i_pos = _extreme(sq, same, metric, largest=True)
    d_neg, i_neg = _extreme(sq, ~same, metric, largest=False)
    gap = d_pos - d_neg
    loss = softplus(gap) if margin is None else (gap + margin).relu()
    return reduced(loss, reduction), d_pos, d_neg, i_pos, i_neg


def _extreme(sq: Tensor, eligible: Tensor, metric: str, largest: bool) -> tuple[Tensor, Tensor]:
    """Distance and index of the farthest or nearest eligible column of each row; an empty row is (-+inf, -1)."""
    empty = -torch.inf if largest else torch.inf
    if sq.size(1) == 0:
        return sq.new_full((len(sq),), empty), torch.full((len(sq),), -1, device=sq.device)
    masked = sq.masked_fill(~eligible, empty)
    value, index = masked.max(1) if largest else masked.min(1)
    dist = value.clamp(min=FLOOR).sqrt() if metric == "euclidean" else SCALE[metric] * value
    some = eligible.any(1)
    return torch.where(some, dist, empty), index.masked_fill(~some, -1)


@triton.jit
def _mine_kernel(
    x_ptr, y_ptr, mean_ptr, labels_ptr, ref_labels_ptr, key_ptr, index_ptr, n, m, n_cols, n_splits,
    SAME: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program mines BLOCK_M anchors against every n_splits-th block of references. key, index: [2, n_splits, n]."""
    split = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    label = tl.load(labels_ptr + row, mask=row < n, other=0)
    pos_key = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    neg_key = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    pos_idx = tl.full((BLOCK_M,), -1, tl.int64)
    neg_idx = tl.full((BLOCK_M,), -1, tl.int64)
    for start in range(split * BLOCK_N, m, n_splits * BLOCK_N):
        col = tl.cast(start, tl.int64) + tl.arange(0, BLOCK_N)
        ref_label = tl.load(ref_labels_ptr + col, mask=col < m, other=0)
        sq = sqdist_tile(x_ptr, y_ptr, mean_ptr, row, col, n, m, n_cols, CLOSE, SAME, PRECISION, BLOCK_K)
        pos, neg = keys(sq, label[:, None] == ref_label[None, :], col[None, :] < m)
        pos_key, pos_idx = keep_best(pos, start, pos_key, pos_idx)
        neg_key, neg_idx = keep_best(neg, start, neg_key, neg_idx)
    out = tl.cast(split, tl.int64) * n + row
    other_side = tl.cast(n_splits, tl.int64) * n
    tl.store(key_ptr + out, pos_key, mask=row < n)
    tl.store(index_ptr + out, pos_idx, mask=row < n)
    tl.store(key_ptr + other_side + out, neg_key, mask=row < n)
    tl.store(index_ptr + other_side + out, neg_idx, mask=row < n)


@triton.jit
def _finish_kernel(
    x_ptr, y_ptr, key_ptr, index_ptr, loss_ptr, d_pos_ptr, d_neg_ptr, i_pos_ptr, i_neg_ptr, margin, n, n_cols, n_splits,
    ROOT: tl.constexpr, SCALE_: tl.constexpr, SOFT: tl.constexpr, FLOOR_: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per anchor: merges the splits and finishes."""
    anchor = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    side = tl.cast(n_splits, tl.int64) * n
    i_pos = _merge(key_ptr + anchor, index_ptr + anchor, n, n_splits)
    i_neg = _merge(key_ptr + side + anchor, index_ptr + side + anchor, n, n_splits)
    finish(x_ptr, y_ptr, loss_ptr, d_pos_ptr, d_neg_ptr, i_pos_ptr, i_neg_ptr, anchor, i_pos, i_neg, margin,
           n, n_cols, ROOT, SCALE_, SOFT, FLOOR_, BLOCK)  # fmt: skip


@triton.jit
def _merge(key_ptr, index_ptr, n, n_splits):
    """Index of the best key over all splits; the lower index where keys are equal."""
    key = tl.load(key_ptr)
    idx = tl.load(index_ptr)
    for split in range(1, n_splits):
        offset = tl.cast(split, tl.int64) * n
        other_key = tl.load(key_ptr + offset)
        other_idx = tl.load(index_ptr + offset)
        take = (other_idx >= 0) & ((other_key > key) | ((other_key == key) & (other_idx < idx)))
        key = tl.where(take, other_key, key)
        idx = tl.where(take, other_idx, idx)
    return idx


batch_hard = Op("batch_hard", batch_hard_ref)


@batch_hard.register_fake
def _alloc(feat, labels, reference, ref_labels, metric, margin, precision, reduction):
    y, y_labels = (feat, labels) if reference is None else (reference, ref_labels)
    fits = feat.dim() == 2 and y.dim() == 2 and feat.size(1) == y.size(1)
    check(fits, lambda: f"batch_hard: expected [N, D] and [M, D], got {list(feat.shape)} and {list(y.shape)}")
    check(labels.size(0) == feat.size(0) and y_labels.size(0) == y.size(0), lambda: "batch_hard: one label per row")
    n, acc = feat.size(0), torch.promote_types(feat.dtype, torch.float32)
    loss, d_pos, d_neg = (feat.new_empty(shape, dtype=acc) for shape in (reduced_shape(n, reduction), (n,), (n,)))
    return loss, d_pos, d_neg, labels.new_empty(n), labels.new_empty(n)


@batch_hard.register_kernel("cpu")
def _cpu(feat, labels, reference, ref_labels, metric, margin, precision, reduction):
    x, y = float_rows(feat), None if reference is None else float_rows(reference)
    loss, *mined = _alloc(feat, labels, reference, ref_labels, metric, margin, precision, "none")
    y_labels = None if y is None else ref_labels.contiguous()
    _C.hard_mine(x, labels.contiguous(), y, y_labels, metric, margin, loss, *mined, torch.get_num_threads())
    return reduced(loss, reduction), *mined


@batch_hard.register_kernel("cuda")
def _triton(feat, labels, reference, ref_labels, metric, margin, precision, reduction):
    args = feat, labels, reference, ref_labels, metric, margin, precision
    if feat.size(0) == 0 or (reference is not None and reference.size(0) == 0):
        return batch_hard_ref(*args, reduction)
    x, x_labels = gpu_rows(feat), labels.contiguous()
    y, y_labels = (x, x_labels) if reference is None else (gpu_rows(reference), ref_labels.contiguous())
    (n, n_cols), m = x.shape, len(y)
    if n <= SMALL and m <= SMALL:
        out = _alloc(*args, reduction)
        with torch.cuda.device_of(x):
            mine(x, x_labels, y, y_labels, margin, precision, reduction, out, _constants(metric, margin))
        return out
    launch = tile_launch(n, m)
    rows, splits = fold_grid(n, m, launch)
    key = x.new_empty(2, splits, n, dtype=torch.float32)
    key_index = x_labels.new_empty(2, splits, n)
    loss, *mined = _alloc(*args, "none")
    with torch.cuda.device_of(x):
        _mine_kernel[(rows, splits)](
            x, y, mean_row(x, y), x_labels, y_labels, key, key_index, n, m, n_cols, splits, SAME=y is x,
            CLOSE=CLOSE_PAIR, PRECISION=input_precision(precision), **launch,
        )  # fmt: skip
        _finish_kernel[(n,)](
            x, y, key, key_index, loss, *mined, margin or 0.0, n, n_cols, splits, BLOCK=1024,
            **_constants(metric, margin),
        )  # fmt: skip
    return reduced(loss, reduction), *mined


def _backward_ref(
    g_loss: Tensor | None,
    g_pos: Tensor | None,
    g_neg: Tensor | None,
    feat: Tensor,
    reference: Tensor | None,
    d_pos: Tensor,
    d_neg: Tensor,
    i_pos: Tensor,
    i_neg: Tensor,
    metric: str,
    margin: float | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    acc = d_pos.dtype
    x = feat.to(acc)
    y = x if reference is None else reference.to(acc)
    gap = d_pos - d_neg
    slope = torch.sigmoid(gap) if margin is None else (gap + margin > 0).to(acc)
    common = torch.zeros_like(gap) if g_loss is None else grad_of_rows(g_loss, len(x), reduction) * slope
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    for given, dist, index, sign in ((g_pos, d_pos, i_pos, 1), (g_neg, d_neg, i_neg, -1)) if len(y) else ():
        grad = sign * common if given is None else given + sign * common
        idle = (index < 0) | (grad == 0)
        if metric == "euclidean":
            weight = (grad / dist).masked_fill(idle | (dist <= FLOOR**0.5), 0.0).unsqueeze(1)
        else:
            weight = (2 * SCALE[metric] * grad).masked_fill(idle, 0.0).unsqueeze(1)
        partner = index.clamp(min=0)
        step = torch.where(weight == 0, 0.0, weight * (x - y[partner]))  # an idle NaN row must not leak as 0 * NaN
        grad_x += step
        grad_y.index_add_(0, partner, -step)
    if reference is None:
        return (grad_x + grad_y).to(feat.dtype), grad_y.new_empty(0)
    return grad_x.to(feat.dtype), grad_y.to(reference.dtype)


batch_hard_backward = Op("batch_hard_backward", _backward_ref)


@batch_hard_backward.register_fake
def _alloc_backward(g_loss, g_pos, g_neg, feat, reference, d_pos, d_neg, i_pos, i_neg, metric, margin, reduction):
    contiguous = torch.contiguous_format
    grad_reference = d_pos.new_empty(0) if reference is None else torch.empty_like(reference, memory_format=contiguous)
    return torch.empty_like(feat, memory_format=contiguous), grad_reference


@batch_hard_backward.register_kernel("cpu")
def _cpu_backward(g_loss, g_pos, g_neg, feat, reference, d_pos, d_neg, i_pos, i_neg, metric, margin, reduction):
    x = float_rows(feat)
    g_loss = None if g_loss is None else grad_of_rows(g_loss, len(x), reduction)
    y = x if reference is None else float_rows(reference)
    grad_x = torch.empty_like(x)
    grad_y = None if reference is None else torch.empty_like(y)
    grads = (None if g is None else g.contiguous() for g in (g_loss, g_pos, g_neg))
    threads = torch.get_num_threads()
    _C.hard_backward(x, y, *grads, d_pos, d_neg, i_pos, i_neg, metric, margin, grad_x, grad_y, threads)
    return grad_x.to(feat.dtype), d_pos.new_empty(0) if grad_y is None else grad_y.to(reference.dtype)


@triton.jit
def _weight(
    g_loss_ptr, g_pos_ptr, g_neg_ptr, d_pos_ptr, d_neg_ptr, index_ptr, margin, share, anchor, POSITIVE: tl.constexpr,
    EACH: tl.constexpr, ROOT: tl.constexpr, SCALE_: tl.constexpr, SOFT: tl.constexpr, FLOOR_: tl.constexpr,
):  # fmt: skip
    """Factor of (f_anchor - partner) in the gradient of one side. A null pointer (None) is a zero gradient."""
    d_pos = tl.load(d_pos_ptr + anchor)
    d_neg = tl.load(d_neg_ptr + anchor)
    gap = d_pos - d_neg
    grad = 0.0
    if g_loss_ptr is not None:
        tail = tl.exp(-tl.abs(gap))
        soft = tl.where(gap >= 0.0, 1.0, tail) / (1.0 + tail)
        slope = soft if SOFT else tl.where(gap + tl.cast(margin, tl.float32) > 0.0, 1.0, 0.0)
        grad = tl.load(g_loss_ptr + EACH * anchor) * tl.cast(share, tl.float32) * slope
        grad = grad if POSITIVE else -grad
    if POSITIVE:
        if g_pos_ptr is not None:
            grad += tl.load(g_pos_ptr + anchor)
        dist = d_pos
    else:
        if g_neg_ptr is not None:
            grad += tl.load(g_neg_ptr + anchor)
        dist = d_neg
    idle = (tl.load(index_ptr + anchor) < 0) | (grad == 0.0)
    if ROOT:
        idle = idle | (dist * dist <= FLOOR_ * 1.0001)
        return tl.where(idle, 0.0, grad / tl.where(idle, 1.0, dist))
    return tl.where(idle, 0.0, 2.0 * SCALE_ * grad)


@triton.jit
def _add_side(
    acc, own, row, k, other_ptr, chooses, n_choosers,
    g_loss_ptr, g_pos_ptr, g_neg_ptr, d_pos_ptr, d_neg_ptr, index_ptr, margin, share, n_cols, POSITIVE: tl.constexpr,
    EACH: tl.constexpr, ROOT: tl.constexpr, SCALE_: tl.constexpr, SOFT: tl.constexpr, FLOOR_: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Adds what the partner of the row pulls, if it ``chooses`` one, and what the anchors pull that chose the row."""
    if chooses:
        weight = _weight(g_loss_ptr, g_pos_ptr, g_neg_ptr, d_pos_ptr, d_neg_ptr, index_ptr, margin, share, row,
                         POSITIVE, EACH, ROOT, SCALE_, SOFT, FLOOR_)  # fmt: skip
        mask = k < tl.where(weight != 0.0, n_cols, 0)
        theirs = tl.load(other_ptr + tl.load(index_ptr + row) * n_cols + k, mask=mask, other=0.0).to(tl.float32)
        acc += tl.where(mask, weight * (own - theirs), 0.0)
    for start in range(0, n_choosers, BLOCK_N):
        anchor = start + tl.arange(0, BLOCK_N)
        chosen = tl.load(index_ptr + anchor, mask=anchor < n_choosers, other=-1) == row
        left = tl.sum(chosen.to(tl.int32), 0)
        last = -1
        while left > 0:
            last = tl.min(tl.where(chosen & (anchor > last), anchor, n_choosers), 0)
            weight = _weight(g_loss_ptr, g_pos_ptr, g_neg_ptr, d_pos_ptr, d_neg_ptr, index_ptr, margin, share, last,
                             POSITIVE, EACH, ROOT, SCALE_, SOFT, FLOOR_)  # fmt: skip
            mask = k < tl.where(weight != 0.0, n_cols, 0)
            theirs = tl.load(other_ptr + tl.cast(last, tl.int64) * n_cols + k, mask=mask, other=0.0).to(tl.float32)
            acc += tl.where(mask, weight * (own - theirs), 0.0)
            left -= 1
    return acc


@triton.jit
def _backward_kernel(
    x_ptr, y_ptr, to_x_ptr, to_y_ptr, g_loss_ptr, g_pos_ptr, g_neg_ptr, d_pos_ptr, d_neg_ptr, i_pos_ptr, i_neg_ptr,
    margin, share, n, n_cols, SAME: tl.constexpr, EACH: tl.constexpr, ROOT: tl.constexpr, SCALE_: tl.constexpr,
    SOFT: tl.constexpr, FLOOR_: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program makes one row of a gradient: its own two partners, then the anchors that chose it in rising order.

    Rows of another set follow those of the anchors. Anchors are found by scanning the index vectors: no atomic, no
    sort, and the sum has one order.
    """
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    chooses, n_choosers = SAME or row < n, n
    if not SAME:
        if chooses:
            n_choosers *= 0
        else:
            row -= n
            x_ptr, y_ptr, to_x_ptr = y_ptr, x_ptr, to_y_ptr
    own = tl.load(x_ptr + row * n_cols + k, mask=k < n_cols, other=0.0).to(tl.float32)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    acc = _add_side(acc, own, row, k, y_ptr, chooses, n_choosers, g_loss_ptr, g_pos_ptr, g_neg_ptr, d_pos_ptr,
                    d_neg_ptr, i_pos_ptr, margin, share, n_cols, True, EACH, ROOT, SCALE_, SOFT, FLOOR_,
                    BLOCK_N)  # fmt: skip
    acc = _add_side(acc, own, row, k, y_ptr, chooses, n_choosers, g_loss_ptr, g_pos_ptr, g_neg_ptr, d_pos_ptr,
                    d_neg_ptr, i_neg_ptr, margin, share, n_cols, False, EACH, ROOT, SCALE_, SOFT, FLOOR_,
                    BLOCK_N)  # fmt: skip
    tl.store(to_x_ptr + row * n_cols + k, acc, mask=k < n_cols)


@batch_hard_backward.register_kernel("cuda")
def _triton_backward(g_loss, g_pos, g_neg, feat, reference, d_pos, d_neg, i_pos, i_neg, metric, margin, reduction):
    mined = d_pos, d_neg, i_pos, i_neg
    grad_x, grad_y = _alloc_backward(g_loss, g_pos, g_neg, feat, reference, *mined, metric, margin, reduction)
    x = gpu_rows(feat)
    y = x if reference is None else gpu_rows(reference)
    n, n_cols = x.shape
    grads = (None if g is None else g.contiguous() for g in (g_loss, g_pos, g_neg))
    block = min(2048, triton.next_power_of_2(max(n_cols, 1)))
    grid = n if reference is None else n + len(y), triton.cdiv(n_cols, block)
    if grid[0] and grid[1]:
        with torch.cuda.device_of(x):
            _backward_kernel[grid](
                x, y, grad_x, grad_y, *grads, *mined, margin or 0.0, share_of_row(n, reduction), n, n_cols,
                SAME=reference is None, EACH=reduction == "none", **_constants(metric, margin), BLOCK_D=block,
                BLOCK_N=min(512, max(SMALL, triton.next_power_of_2(n))),
                maxnreg=80,  # all it needs; left alone, ptxas aims at 64 and spills
            )  # fmt: skip
    return grad_x, grad_y


def _setup(ctx, inputs, output):
    feat, _, reference, _, ctx.metric, ctx.margin, _, ctx.reduction = inputs
    ctx.mark_non_differentiable(output[3], output[4])
    ctx.save_for_backward(feat, reference, *output[1:])


def _backward(ctx, g_loss, g_pos, g_neg, *_):
    feat, reference, *mined = ctx.saved_tensors
    how = ctx.metric, ctx.margin, ctx.reduction
    grads = batch_hard_backward(g_loss, g_pos, g_neg, feat, reference, *mined, *how)
    return grads[0], None, None if reference is None else grads[1], None, None, None, None, None


batch_hard.register_autograd(_backward, _setup)
