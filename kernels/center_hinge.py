r"""center_hinge: the two centers of an identity must not be farther apart after purification than before.

    d_c(f) = || mean of f over (c, visible) - mean of f over (c, infrared) + 1e-6 ||      (1e-6 in every component)
    loss   = mean over identities c of max(0, d_c(purified) - d_c(raw) + margin)

Shapes   raw, purified [N, D], labels and modality [N] int64; out: a scalar, float32 (float64 for float64).
Defined  an identity counts once, and only where it has rows of both modalities; a row whose modality is neither 0 nor 1
         is left out; no such identity: 0. At distance 0 the gradient of the distance is 0.
Backward nothing is saved but the inputs: centers and distances are computed again, in one pass over the same rows.
Memory   the centers of one identity; beyond LABELLED rows of a GPU two centers of every identity. Gradients.
Launches on a GPU up to LABELLED rows one forward and one backward: a program finds the rows of an identity by comparing
         labels, and the last to finish takes the mean.
Floor    2*N*D*4 bytes read; backward the same again, and as many written.
Measured 5.6 and 3.6 of a pass over the bytes for 120 and 512 rows of 2048 on two cores of an AMD EPYC, forward and
         backward.
Source   specs idkl 3, L_m.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels._small import LABELLED, counters, last_program, load_row, next_row
from vifast.kernels.class_centers import class_centers, class_centers_ref, dense_codes

OFFSET = 1e-6  # added to every component of a difference of centers, as published


def _centers(feat, labels, modality, centers_of=class_centers_ref):
    """By identity: difference of the centers, its norm, counts of both modalities; by row: the center it belongs to."""
    n = len(feat)
    sides = torch.where((modality == 0) | (modality == 1), 2 * dense_codes(labels) + modality, -1)
    centers, counts = centers_of(feat, sides, 2 * n)
    diff = centers[0::2] - centers[1::2] + OFFSET
    return diff, diff.norm(dim=1), counts.view(n, 2), sides


def center_hinge_ref(raw: Tensor, purified: Tensor, labels: Tensor, modality: Tensor, margin: float) -> Tensor:
    return _forward(_centers(raw, labels, modality), _centers(purified, labels, modality), margin)


def _forward(raw_centers, purified_centers, margin):
    (_, before, counts, _), (_, after, _, _) = raw_centers, purified_centers
    present = (counts > 0).all(1)
    return torch.where(present, (after - before + margin).relu(), 0.0).sum() / present.sum().clamp(min=1)


@triton.jit
def _identity(labels_ptr, modality_ptr, i, j, n):
    """The rows ``j`` of known modality in row i's identity, the first of them (n for none), how many of each side."""
    side = tl.load(modality_ptr + j, mask=j < n, other=-1)
    same = (j < n) & (tl.load(labels_ptr + j, mask=j < n, other=0) == tl.load(labels_ptr + i))
    visible = tl.sum((same & (side == 0)).to(tl.int32))
    infrared = tl.sum((same & (side == 1)).to(tl.int32))
    members = same & ((side == 0) | (side == 1))
    return members, tl.min(tl.where(members, j, n)), visible, infrared


@triton.jit
def _share(modality_ptr, row, visible, infrared):
    """What a row counts for in the difference of the centers of its identity."""
    return tl.where(tl.load(modality_ptr + row) == 0, 1.0 / visible, -1.0 / infrared)


@triton.jit
def _differences(
    raw_ptr, purified_ptr, modality_ptr, members, first, visible, infrared, j, col, n, n_cols, OFFSET: tl.constexpr
):
    """Components ``col`` of both differences of centers. Rows count from the first, which moves neither."""
    raw_origin = load_row(raw_ptr, first, col, n_cols)
    purified_origin = load_row(purified_ptr, first, col, n_cols)
    raw = tl.zeros(col.shape, tl.float32)
    purified = tl.zeros(col.shape, tl.float32)
    row = first
    while row < n:
        share = _share(modality_ptr, row, visible, infrared)
        raw += share * (load_row(raw_ptr, row, col, n_cols) - raw_origin)
        purified += share * (load_row(purified_ptr, row, col, n_cols) - purified_origin)
        row = next_row(members, j, row, n)
    return tl.where(col < n_cols, raw + OFFSET, 0.0), tl.where(col < n_cols, purified + OFFSET, 0.0)


@triton.jit
def _distances(
    raw_ptr, purified_ptr, modality_ptr, members, first, visible, infrared, j, n, n_cols,
    OFFSET: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Distance of the centers of one identity before and after."""
    before = tl.zeros((BLOCK_C,), tl.float32)
    after = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, n_cols, BLOCK_C):
        col = start + tl.arange(0, BLOCK_C)
        raw, purified = _differences(
            raw_ptr, purified_ptr, modality_ptr, members, first, visible, infrared, j, col, n, n_cols, OFFSET
        )
        before += raw * raw
        after += purified * purified
    return tl.sqrt(tl.sum(before)), tl.sqrt(tl.sum(after))


@triton.jit
def _forward_kernel(
    raw_ptr, purified_ptr, labels_ptr, modality_ptr, terms_ptr, counter_ptr, loss_ptr, n, n_cols, margin,
    OFFSET: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """terms [2, n]: the hinge of an identity and 1 at its first row, if it has both modalities; then their mean."""
    i = tl.program_id(0)
    j = tl.arange(0, BLOCK_N)
    members, first, visible, infrared = _identity(labels_ptr, modality_ptr, i, j, n)
    hinge = 0.0
    present = (first == i) & (visible > 0) & (infrared > 0)
    if present:
        before, after = _distances(
            raw_ptr, purified_ptr, modality_ptr, members, first, visible, infrared, j, n, n_cols, OFFSET, BLOCK_C
        )
        gap = after - before + margin
        hinge = tl.where(gap < 0.0, 0.0, gap)  # a NaN stays
    tl.store(terms_ptr + i, hinge)
    tl.store(terms_ptr + n + i, present.to(tl.float32))
    if last_program(counter_ptr, n):
        total = tl.sum(tl.load(terms_ptr + j, mask=j < n, other=0.0))
        identities = tl.sum(tl.load(terms_ptr + n + j, mask=j < n, other=0.0))
        tl.store(loss_ptr, total / tl.maximum(identities, 1.0))


@triton.jit
def _identities(labels_ptr, modality_ptr, i, n):
    """How many have both modalities: visible rows ``i`` with an infrared one of theirs and no visible one before."""
    label = tl.load(labels_ptr + i, mask=i < n, other=0)
    infrared = tl.zeros(i.shape, tl.int32)
    earlier = tl.zeros(i.shape, tl.int32)
    for start in range(0, n, 16):
        j = start + tl.arange(0, 16)
        side = tl.load(modality_ptr + j, mask=j < n, other=-1)
        same = label[:, None] == tl.load(labels_ptr + j, mask=j < n, other=0)[None, :]
        infrared += tl.sum((same & (side == 1)[None, :]).to(tl.int32), 1)
        earlier += tl.sum((same & (side == 0)[None, :] & (j[None, :] < i[:, None])).to(tl.int32), 1)
    visible = tl.load(modality_ptr + i, mask=i < n, other=-1) == 0
    return tl.sum((visible & (infrared > 0) & (earlier == 0)).to(tl.int32))


@triton.jit
def _backward_kernel(
    grad_ptr, raw_ptr, purified_ptr, labels_ptr, modality_ptr, to_raw_ptr, to_purified_ptr, n, n_cols, margin,
    OFFSET: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The program of an identity's first row writes the gradients of all its rows; rows of no identity write zeros."""
    i = tl.program_id(0)
    j = tl.arange(0, BLOCK_N)
    members, first, visible, infrared = _identity(labels_ptr, modality_ptr, i, j, n)
    both = (visible > 0) & (infrared > 0)
    side = tl.load(modality_ptr + i)
    alone = (both == 0) | ((side != 0) & (side != 1))
    if alone | (first == i):
        raw_pull = 0.0
        purified_pull = 0.0
        if alone == 0:
            before, after = _distances(
                raw_ptr, purified_ptr, modality_ptr, members, first, visible, infrared, j, n, n_cols, OFFSET, BLOCK_C
            )
            if after - before + margin > 0.0:
                pull = tl.load(grad_ptr) / _identities(labels_ptr, modality_ptr, j, n)
                raw_pull = -pull * tl.where(before == 0.0, 0.0, 1.0 / before)
                purified_pull = pull * tl.where(after == 0.0, 0.0, 1.0 / after)
        for start in range(0, n_cols, BLOCK_C):
            col = start + tl.arange(0, BLOCK_C)
            raw = tl.zeros((BLOCK_C,), tl.float32)
            purified = tl.zeros((BLOCK_C,), tl.float32)
            if (raw_pull != 0.0) | (purified_pull != 0.0):
                raw, purified = _differences(
                    raw_ptr, purified_ptr, modality_ptr, members, first, visible, infrared, j, col, n, n_cols, OFFSET
                )
            row = i
            while row < n:
                at = tl.cast(row, tl.int64) * n_cols + col
                share = tl.where(alone, 0.0, _share(modality_ptr, row, visible, infrared))
                tl.store(to_raw_ptr + at, tl.where(share == 0.0, 0.0, raw_pull * share * raw), mask=col < n_cols)
                step = tl.where(share == 0.0, 0.0, purified_pull * share * purified)
                tl.store(to_purified_ptr + at, step, mask=col < n_cols)
                row = tl.where(alone, n, next_row(members, j, row, n))


center_hinge = Op("center_hinge", center_hinge_ref)


@center_hinge.register_fake
def _alloc(raw, purified, labels, modality, margin):
    fits = raw.dim() == 2 and raw.shape == purified.shape and labels.shape == modality.shape == raw.shape[:1]
    check(fits, lambda: f"center_hinge: expected [N, D] twice and [N] twice, got {list(raw.shape)} and others")
    return raw.new_empty((), dtype=torch.promote_types(raw.dtype, torch.float32))


@center_hinge.register_kernel("cpu")
def _cpu(raw, purified, labels, modality, margin):
    loss = _alloc(raw, purified, labels, modality, margin)
    args = float_rows(raw), float_rows(purified), labels.contiguous(), modality.contiguous(), margin, OFFSET
    _C.center_hinge(*args, loss, None, None, None, torch.get_num_threads())
    return loss


@center_hinge.register_kernel("cuda")
def _triton(raw, purified, labels, modality, margin):
    if not 0 < len(raw) <= LABELLED:
        return _forward(*(_centers(x, labels, modality, class_centers.run) for x in (raw, purified)), margin)
    loss, terms = _alloc(raw, purified, labels, modality, margin), raw.new_empty(2, len(raw), dtype=torch.float32)
    rows, launch = _small(raw, purified, labels, modality)
    with torch.cuda.device_of(raw):
        state = terms, counters(raw), loss
        _forward_kernel[(len(raw),)](*rows, *state, len(raw), raw.size(1), margin, OFFSET=OFFSET, **launch)
    return loss


def _small(raw, purified, labels, modality):
    """Inputs and launch of the kernels that compare labels."""
    block = min(2048, max(128, triton.next_power_of_2(raw.size(1))))
    launch = {"BLOCK_N": max(16, triton.next_power_of_2(len(raw))), "BLOCK_C": block, "num_warps": max(1, block // 128)}
    return tuple(x.detach().contiguous() for x in (raw, purified, labels, modality)), launch


def _backward_ref(
    grad: Tensor, raw: Tensor, purified: Tensor, labels: Tensor, modality: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    return _gradients(grad, raw.dtype, *(_centers(x, labels, modality) for x in (raw, purified)), margin)


def _gradients(grad, dtype, raw_centers, purified_centers, margin):
    (before, d_before, counts, sides), (after, d_after, _, _) = raw_centers, purified_centers
    present = (counts > 0).all(1)
    active = present & (d_after - d_before + margin > 0)
    share = torch.where(active, grad / present.sum().clamp(min=1), 0.0)
    # Row i pulls its own center: the visible one with +1, the infrared one with -1, each by 1 / count.
    identity, side = sides.clamp(min=0) // 2, sides.clamp(min=0) % 2
    pull = share[identity] * (1 - 2 * side) / counts[identity, side].clamp(min=1)
    pull = torch.where(sides >= 0, pull, 0.0).unsqueeze(1)
    grads = []
    for sign, diff, dist in ((-1, before, d_before), (1, after, d_after)):
        unit = torch.where(dist == 0, 0.0, 1 / dist).unsqueeze(1) * diff
        grads.append(torch.where(pull == 0, 0.0, sign * pull * unit[identity]).to(dtype))
    return tuple(grads)


center_hinge_backward = Op("center_hinge_backward", _backward_ref)


@center_hinge_backward.register_fake
def _alloc_backward(grad, raw, purified, labels, modality, margin):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (raw, purified))


@center_hinge_backward.register_kernel("cpu")
def _cpu_backward(grad, raw, purified, labels, modality, margin):
    x, y = float_rows(raw), float_rows(purified)
    grads = torch.empty_like(x), torch.empty_like(y)
    args = x, y, labels.contiguous(), modality.contiguous(), margin, OFFSET
    _C.center_hinge(*args, None, grad, *grads, torch.get_num_threads())
    return tuple(g.to(raw.dtype) for g in grads)


@center_hinge_backward.register_kernel("cuda")
def _triton_backward(grad, raw, purified, labels, modality, margin):
    if not 0 < len(raw) <= LABELLED:
        sides = (_centers(x, labels, modality, class_centers.run) for x in (raw, purified))
        return _gradients(grad, raw.dtype, *sides, margin)
    grads = _alloc_backward(grad, raw, purified, labels, modality, margin)
    rows, launch = _small(raw, purified, labels, modality)
    with torch.cuda.device_of(raw):
        _backward_kernel[(len(raw),)](grad, *rows, *grads, len(raw), raw.size(1), margin, OFFSET=OFFSET, **launch)
    return grads


def _setup(ctx, inputs, output):
    *tensors, ctx.margin = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    if grad is None:
        return (None,) * 5
    return *center_hinge_backward(grad, *ctx.saved_tensors, ctx.margin), None, None, None


center_hinge.register_autograd(_backward, _setup)
