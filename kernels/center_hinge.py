r"""center_hinge: the two centers of an identity must not be farther apart after purification than before.

    d_c(f) = || mean of f over (c, visible) - mean of f over (c, infrared) + 1e-6 ||      (1e-6 in every component)
    loss   = mean over identities c of max(0, d_c(purified) - d_c(raw) + margin)

Shapes   raw, purified [N, D], labels and modality [N] int64; out: a scalar, float32 (float64 for float64).
Defined  an identity counts once, and only where it has rows of both modalities; a row whose modality is neither 0 nor 1
         is left out; no such identity: 0. At distance 0 the gradient of the distance is 0.
Backward nothing is saved but the inputs: centers and distances are computed again, in one pass over the same rows.
Memory   the centers of one identity (CPU); gradients.
Floor    2*N*D*4 bytes read; backward the same again, and as many written.
Source   specs idkl 3, L_m.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._registry import Op, check
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
def _cuda(raw, purified, labels, modality, margin):
    return _forward(*(_centers(x, labels, modality, class_centers.run) for x in (raw, purified)), margin)


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
def _cuda_backward(grad, raw, purified, labels, modality, margin):
    sides = (_centers(x, labels, modality, class_centers.run) for x in (raw, purified))
    return _gradients(grad, raw.dtype, *sides, margin)


def _setup(ctx, inputs, output):
    *tensors, ctx.margin = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    if grad is None:
        return (None,) * 5
    return *center_hinge_backward(grad, *ctx.saved_tensors, ctx.margin), None, None, None


center_hinge.register_autograd(_backward, _setup)
