r"""center_cluster: rows are drawn to the center of their identity, centers pushed apart up to a margin.

    loss = mean_i |f_i - c_{y_i}| + mean_{k != l} max(0, margin - |c_k - c_l|)

Shapes   feat [N, D], labels [N] int64; out: loss [], distances of rows to their centers [N], float32 (float64 for
         float64); of few rows on a GPU distances of the centers beside them [N, N].
Identity a center counts once. The CPU has one row a center, K of them; elsewhere their number would have to be read
         back, so a center stands beside every row of its identity and counts for 1 / rows of it.
Defined  no rows: 0; one identity is pushed by none. A row that is not finite makes the loss NaN; its center pushes
         none, and no gradient comes from it. No gradient from a row in its center, or from two equal centers.
Backward p_i = g (f_i - c_{y_i}) / (N |f_i - c_{y_i}|), and with s_kl = -2 g / (K (K - 1) |c_k - c_l|) of pairs within
         the margin, q_k = sum_l s_kl (c_k - c_l) / |k| - mean_{i in k} p_i: grad_i = p_i + q_{y_i}.
Memory   rows less centers, the gradient, K x K (CPU). CUDA: up to SMALL rows N x N and N / 16 copies of centers, beyond
         them a center beside every row and their N x N distances.
Launches on a GPU up to SMALL rows one forward and one backward, see center_cluster_small.
Floor    8*N*D bytes read forward and again backward, where 4*N*D are written; K x K x D products forward, twice as
         many backward.
Measured 8.9, 4.8 and 1.9 of its bytes and products for 64, 120 and 512 rows of 2048, four of an identity, on two cores
         of an AMD EPYC, forward and backward.
Source   spec idkl 4 (the unused "center cluster" loss).
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import centered, float_rows, product
from vifast.kernels._registry import Op, check
from vifast.kernels._small import SMALL
from vifast.kernels._tile import gpu_rows
from vifast.kernels.batch_hard import FLOOR
from vifast.kernels.center_cluster_small import gather, pull
from vifast.kernels.class_centers import row_centers
from vifast.kernels.pairwise_distance import pairwise_distance, pairwise_distance_backward


def _beside(feat, labels, precision):
    """Rows, centers beside them, 1 / rows of each, distances of these, which push each other, pairs of identities."""
    x = feat.to(torch.promote_types(feat.dtype, torch.float32))
    centers, counts = row_centers(feat, labels)
    once = 1 / counts.to(x.dtype)
    # A spoilt center makes the pull non-finite; its distances would spoil the gradient of all others.
    sound = centers.isfinite().all(1)
    dist = pairwise_distance(torch.where(sound.unsqueeze(1), centers, 0.0), None, FLOOR, True, precision)
    others = (labels.unsqueeze(1) != labels) & sound.unsqueeze(1) & sound
    identities = once.sum()
    return x, centers, once, dist, others, (identities * (identities - 1)).clamp(min=1)


def center_cluster_ref(feat: Tensor, labels: Tensor, margin: float, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    x, centers, once, dist, others, pairs = _beside(feat, labels, precision)
    own = (x - centers).norm(dim=1)
    hinge = torch.where(others, (margin - dist).relu(), 0.0)
    loss = own.sum() / max(len(x), 1) + (once.unsqueeze(1) * once * hinge).sum() / pairs
    return loss, own, x.new_empty(0)


center_cluster = Op("center_cluster", center_cluster_ref)


@center_cluster.register_fake
def _alloc(feat, labels, margin, precision):
    fits = feat.dim() == 2 and labels.shape == feat.shape[:1]
    check(fits, lambda: f"center_cluster: expected [N, D] and [N], got {list(feat.shape)} and {list(labels.shape)}")
    n, acc = feat.size(0), torch.promote_types(feat.dtype, torch.float32)
    few = feat.device.type != "cpu" and feat.dtype != torch.float64 and _few(feat)
    return tuple(feat.new_empty(shape, dtype=acc) for shape in ((), (n,), (n, n) if few else (0,)))


def _few(feat: Tensor) -> bool:
    return 0 < feat.size(0) <= SMALL and feat.size(1) > 0


def _compact(feat, labels):
    """One row a center, its count, the center of every row, rows less it; distances of centers, infinite to itself."""
    x, threads = float_rows(feat), torch.get_num_threads()
    codes, first = torch.empty_like(labels), torch.empty_like(labels)
    k = _C.identity_codes(labels.contiguous(), codes, first)
    centers, counts, dist = x.new_empty(k, x.size(1)), labels.new_empty(k), x.new_empty(k, k)
    _C.class_centers(x, codes, centers, counts, threads)
    _C.pairwise(centers, None, FLOOR, True, dist, threads)
    steps = centers.index_select(0, codes)
    return centers, counts, codes, torch.sub(x, steps, out=steps), dist.fill_diagonal_(torch.inf)


@center_cluster.register_kernel("cpu")
def _cpu(feat, labels, margin, precision):
    _, own, unused = _alloc(feat, labels, margin, precision)
    if not feat.numel():
        return center_cluster_ref(feat, labels, margin, precision)
    *_, steps, dist = _compact(feat, labels)
    torch.norm(steps, dim=1, out=own)
    k, hinge = len(dist), (margin - dist).relu_().nan_to_num_(0.0)
    return own.sum() / len(own) + hinge.sum(1).sum() / max(k * (k - 1), 1), own, unused


@center_cluster.register_kernel("cuda")
def _triton(feat, labels, margin, precision):
    if not _few(feat):
        return center_cluster_ref(feat, labels, margin, precision)
    loss, own, _ = _alloc(feat, labels, margin, precision)
    dist = own.new_empty(len(own), len(own))
    gather(gpu_rows(feat), labels.contiguous(), margin, loss, own, dist)
    return loss, own, dist


def _backward_ref(
    grad: Tensor, own: Tensor, dist: Tensor, feat: Tensor, labels: Tensor, margin: float, precision: str
) -> Tensor:
    x, centers, once, dist, others, pairs = _beside(feat, labels, precision)
    pull = _pulls(grad, own)
    steps = torch.where(pull == 0, 0.0, pull * (x - centers))
    push = torch.where(others & (dist < margin), -grad / pairs * once.unsqueeze(1) * once, 0.0)
    sound = torch.where(centers.isfinite().all(1, keepdim=True), centers, 0.0)
    to_centers, _ = pairwise_distance_backward(push, dist, sound, None, FLOOR, True)
    return (steps + row_centers(to_centers - steps, labels)[0]).to(feat.dtype)


def _pulls(grad, own):
    """How hard rows are drawn to their centers, by distance: not from the center itself, nor where it is not finite."""
    return torch.where((own > 0) & own.isfinite(), grad / max(len(own), 1) / own, 0.0).unsqueeze(1)


center_cluster_backward = Op("center_cluster_backward", _backward_ref)


@center_cluster_backward.register_fake
def _alloc_backward(grad, own, dist, feat, labels, margin, precision):
    return torch.empty_like(feat, memory_format=torch.contiguous_format)


@center_cluster_backward.register_kernel("cpu")
def _cpu_backward(grad, own, dist, feat, labels, margin, precision):
    if not feat.numel():
        return torch.zeros_like(feat)
    centers, counts, codes, steps, apart = _compact(feat, labels)
    steps.mul_(_pulls(grad, own)).nan_to_num_(0.0, 0.0, 0.0)
    k = len(apart)
    near = (apart < margin) & (apart.square() > FLOOR * 1.0001)
    weights = torch.where(near, 2 * grad / max(k * (k - 1), 1) / apart, 0.0)
    weights.diagonal().copy_(-weights.sum(1))
    threads = torch.get_num_threads()
    centers = centered(centers, threads)
    means = torch.empty_like(centers)
    _C.class_centers(steps, codes, means, counts, threads)
    to_centers = product(weights, centers.T, torch.empty_like(centers)).div_(counts.unsqueeze(1)).sub_(means)
    return steps.add_(to_centers.index_select(0, codes)).to(feat.dtype)


@center_cluster_backward.register_kernel("cuda")
def _triton_backward(grad, own, dist, feat, labels, margin, precision):
    if not _few(feat):
        return _backward_ref(grad, own, dist, feat, labels, margin, precision)
    out = _alloc_backward(grad, own, dist, feat, labels, margin, precision)
    pull(grad, own, dist, gpu_rows(feat), labels.contiguous(), margin, out)
    return out


def _setup(ctx, inputs, output):
    feat, labels, *ctx.how = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], feat, labels)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 4
    return center_cluster_backward(grad, *ctx.saved_tensors, *ctx.how), None, None, None


center_cluster.register_autograd(_backward, _setup)
