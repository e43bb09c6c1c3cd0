"""What rows of a batch say of each other, in a student against its teacher: the relational terms of distillation.

All are 0 where the student's rows are the teacher's, and the teacher is constant. They are computed in float64, in
which agreeing rows keep their digits and which autocast leaves alone, and returned in float32 (float64 for float64).
"""

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torch.utils.checkpoint import checkpoint

from vifast import functional
from vifast.kernels.unit_rows import unit_rows

SLAB = 2**20  # angles at a time: 8 MiB
_SHORT = 1e-12  # squared length of an edge, of the mean squared row, below which it has no direction


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    return student.double(), teacher.detach().double(), torch.promote_types(student.dtype, torch.float32)


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation by distance, [N]: mean over j of huber(d_ij / mean d - the teacher's).

    d is the Euclidean distance, its mean taken over all pairs; huber is quadratic up to 1. Scales do not matter.
    Source: Park et al. 2019, spec dakd 11.
    """
    student, teacher, dtype = _pair(student, teacher)
    n = len(student)
    others = ~torch.eye(n, dtype=torch.bool, device=student.device)
    relative = []
    for x in (student, teacher):
        dist = functional.pairwise_distance(x) * others
        relative.append(dist / (dist.sum() / max(n * (n - 1), 1)).clamp(min=torch.finfo(dist.dtype).tiny))
    return (smooth_l1_loss(*relative, reduction="none").sum(1) / max(n - 1, 1)).to(dtype)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation by angle, [N]: mean over pairs j, k of the others of huber(c_ijk - the teacher's).

    c_ijk is the cosine, at row i, of the edges to j and k; an edge of no length has cosine 0. All come from products of
    rows: N^3 numbers, some rows' at a time and again in the backward, so N^2 are kept. Shift and scale do not matter.
    Source: Park et al. 2019, spec dakd 11, H8.
    """
    student, teacher, dtype = _pair(student, teacher)
    n = len(student)
    centered = (x - x.mean(0) for x in (student, teacher))
    grams = [x @ x.T for x in centered]
    step = max(SLAB // max(n * n, 1), 1)
    if n <= step:
        return _angle_rows(*grams, 0, n).to(dtype)
    slabs = [(start, min(start + step, n)) for start in range(0, n, step)]
    rows = [checkpoint(_angle_rows, *grams, *slab, use_reentrant=False, preserve_rng_state=False) for slab in slabs]
    return torch.cat(rows).to(dtype)


def _angle_rows(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    """Of rows start .. stop, from the products of all."""
    n = len(student)
    pairs = ~torch.eye(n, dtype=torch.bool, device=student.device)
    gap = smooth_l1_loss(_cosines(student, start, stop), _cosines(teacher, start, stop), reduction="none")
    return (gap * pairs).sum((1, 2)) / max((n - 1) * (n - 2), 1)


def _cosines(gram: Tensor, start: int, stop: int) -> Tensor:
    """At rows start .. stop, of the edges to all pairs of rows."""
    to, own = gram[start:stop], gram.diagonal()[start:stop]
    inner = gram - to[:, :, None] - to[:, None, :] + own[:, None, None]
    square = inner.diagonal(dim1=1, dim2=2)
    least = (_SHORT * gram.diagonal().mean()).detach().clamp(min=torch.finfo(gram.dtype).tiny)
    inverse = torch.where(square > least, square.clamp(min=least).rsqrt(), 0.0)
    return inner * inverse[:, :, None] * inverse[:, None, :]


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """|g_i / |g_i| - the teacher's|^2 / N, [N], where row g_i holds the products of row i with all.

    Scales do not matter. Source: Tung & Mori 2019, spec dakd 11.
    """
    student, teacher, dtype = _pair(student, teacher)
    own, wanted = (unit_rows(x @ x.T) for x in (student, teacher))
    return ((own - wanted).square().sum(1) / max(len(student), 1)).to(dtype)


def channel_correlation(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Mean over pairs of channels of (cosine of their columns - the teacher's)^2; rows count by ``weight`` [N].

    The scale of a channel does not matter. The D x D products are not made.
    Source: Liu et al. 2021 (ICKD), spec dakd 11.
    """
    student, teacher, dtype = _pair(student, teacher)
    root = weight.double().sqrt().unsqueeze(1)
    columns = (_unit_columns(root * x) for x in (student, teacher))
    return (_gram_gap(*columns) / max(student.size(1), 1) ** 2).to(dtype)


def _unit_columns(x: Tensor) -> Tensor:
    square, least = x.square().sum(0), torch.finfo(x.dtype).tiny
    return x * torch.where(square > least, square.clamp(min=least).rsqrt(), 0.0)


def batch_gram(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """sum_ij w_i w_j (<p_i, p_j> - the teacher's)^2 / N of rows p of probabilities: which samples look alike.

    Source: Jin et al. 2023 (multi-level logit distillation), spec dakd 11.
    """
    student, teacher, dtype = _pair(student, teacher)
    weight, delta = weight.double(), student - teacher
    gap = delta @ student.T + teacher @ delta.T
    return (weight @ gap.square() @ weight / max(len(student), 1)).to(dtype)


def class_gram(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """sum_cd (sum_i w_i (p_ic p_id - the teacher's))^2 / K of rows p of probabilities: which classes go together.

    The K x K products are not made. Source: Jin et al. 2023 (multi-level logit distillation), spec dakd 11.
    """
    student, teacher, dtype = _pair(student, teacher)
    root = weight.double().sqrt().unsqueeze(1)
    return (_gram_gap(root * student, root * teacher) / max(student.size(1), 1)).to(dtype)


def _gram_gap(a: Tensor, b: Tensor) -> Tensor:
    """|a^T a - b^T b|^2 from products of rows: a^T a - b^T b is [a - b; b]^T [a; a - b], and equal rows leave none."""
    delta = a - b
    left, right = torch.cat((delta, b)), torch.cat((a, delta))
    return ((left @ left.T) * (right @ right.T)).sum()
