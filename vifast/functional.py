"""The ops in the terms of the field: arguments checked, distances named, losses reduced.

Symbols: ``feat [N, D]`` features (float32, bfloat16, float16; float64 is computed in float64 by the definition),
``labels [N]`` identities of any integer type. Results are float32 (float64 for float64). Nothing synchronises with
the host but :func:`check_finite`.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize as _unit_rows

from vifast import _checks
from vifast.kernels.batch_hard import batch_hard
from vifast.kernels.pairwise_distance import pairwise_distance as _pairwise_distance
from vifast.kernels.weighted_triplet import weighted_triplet

METRICS = ("euclidean", "sqeuclidean", "cosine")
REDUCTIONS = ("mean", "sum", "none")
PRECISIONS = ("exact", "fast")

__all__ = ["check_finite", "hard_pairs", "pairwise_distance", "triplet_loss", "weighted_triplet_loss"]


def check_finite(**tensors: Tensor) -> None:
    """Raises ``ValueError`` naming the first tensor with a NaN or an infinity, and its first bad row.

    The losses never synchronise with the host, so they turn bad features into a non-finite loss; this says where it
    came from. It reads a flag back from the device.

    Example:
        >>> import torch
        >>> check_finite(feat=torch.tensor([[0.0], [float("nan")]]))
        Traceback (most recent call last):
        ValueError: feat: row 1 is not finite
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        finite = torch.isfinite(value)
        if not bool(finite.all()):
            row = int((~finite).reshape(len(value), -1).any(1).nonzero()[0]) if value.dim() else 0
            raise ValueError(f"{name}: row {row} is not finite")


def pairwise_distance(
    feat: Tensor,
    other: Tensor | None = None,
    *,
    metric: str = "euclidean",
    floor: float = 1e-12,
    precision: str = "exact",
) -> Tensor:
    r"""Distances of every row of ``feat`` to every row of ``other`` (default: ``feat``).

    ``euclidean``: sqrt(max(||a - b||^2, floor)); ``sqeuclidean``: ||a - b||^2; ``cosine``: 1 - cos(a, b), zero rows
    have cos 0.

    Close pairs do not lose digits: rows are moved to their common mean, and a pair whose squared distance is below
    1/64 of its squared norms is computed by direct difference. No gradient flows through an entry clamped at ``floor``.

    Args:
        feat: [N, D].
        other: [M, D], same dtype and device.
        metric: one of the three above.
        floor: least squared distance under the root, at least 0.
        precision: on a GPU, ``"exact"`` products carry float32 accuracy, ``"fast"`` are tf32. The CPU is always exact.

    Returns:
        [N, M]. This is the one loss-side function that stores N x M; the losses below do not.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: the result and one copy of the inputs. Source: spec idkl 4.

    Example:
        >>> import torch
        >>> pairwise_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]])).tolist()
        [[9.999999974752427e-07], [5.0]]
    """
    _checks.rows("feat", feat)
    if other is not None:
        _checks.rows("other", other)
        _checks.same_columns("other", other, "feat", feat)
    _checks.one_of("metric", metric, METRICS)
    _checks.one_of("precision", precision, PRECISIONS)
    _checks.non_negative("floor", floor)
    if metric == "cosine":
        other = None if other is None else _unit(other)
        return 0.5 * _pairwise_distance(_unit(feat), other, 0.0, False, precision)
    if metric == "sqeuclidean":
        return _pairwise_distance(feat, other, 0.0, False, precision)
    return _pairwise_distance(feat, other, float(floor), True, precision)


def hard_pairs(
    feat: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    metric: str = "euclidean",
    precision: str = "exact",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""The farthest positive and the nearest negative of every anchor.

    Without ``reference`` the set is its own reference and an anchor is its own positive, as in the published losses.
    Ties go to the lower index. An anchor without positives gets index -1 and distance -inf, one without negatives -1
    and +inf; a non-finite partner gives NaN.

    Args:
        feat: [N, D] anchors.
        labels: [N] integers.
        reference: [M, D], mined instead of ``feat``.
        reference_labels: [M] integers, required with ``reference``.
        metric: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"`` (1 - cos), see :func:`pairwise_distance`.
        precision: see :func:`pairwise_distance`.

    Returns:
        ``(i_pos, i_neg, d_pos, d_neg)``, each [N]; the distances are differentiable.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: a copy of the inputs, never N x M. Source: spec idkl 4.

    Example:
        >>> import torch
        >>> feat = torch.tensor([[0.0], [1.0], [5.0], [7.0]])
        >>> i_pos, i_neg, d_pos, d_neg = hard_pairs(feat, torch.tensor([0, 0, 1, 1]))
        >>> i_pos.tolist(), i_neg.tolist(), d_pos.tolist(), d_neg.tolist()
        ([1, 0, 3, 2], [2, 2, 1, 1], [1.0, 1.0, 2.0, 2.0], [5.0, 4.0, 4.0, 6.0])
    """
    _, d_pos, d_neg, i_pos, i_neg = _mine(feat, labels, reference, reference_labels, metric, None, precision)
    return i_pos, i_neg, d_pos, d_neg


def triplet_loss(
    feat: Tensor,
    labels: Tensor,
    *,
    margin: float | None = 0.3,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    metric: str = "euclidean",
    reduction: str = "mean",
    precision: str = "exact",
) -> Tensor:
    r"""Batch-hard triplet loss: max(0, d_pos - d_neg + margin), or softplus(d_pos - d_neg) for ``margin=None``.

    Args:
        feat, labels, reference, reference_labels, metric, precision: see :func:`hard_pairs`.
        margin: at least 0, in units of the distance; ``None`` for the soft margin.
        reduction: ``"mean"`` over the N anchors, ``"sum"`` or ``"none"``. An anchor without a positive or a negative
            counts as 0. The mean of no anchors is 0.

    Returns:
        A scalar, or [N] for ``reduction="none"``.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: a copy of the inputs, and the gradient. Source: spec idkl 4, ckda 4; Hermans et al. 2017.

    Example:
        >>> import torch
        >>> feat = torch.tensor([[0.0], [1.0], [1.5], [7.0]], requires_grad=True)
        >>> loss = triplet_loss(feat, torch.tensor([0, 0, 1, 1]), margin=0.25)
        >>> loss.item()
        1.5
    """
    _checks.one_of("reduction", reduction, REDUCTIONS)
    if margin is not None:
        _checks.non_negative("margin", margin)
    return _reduce(_mine(feat, labels, reference, reference_labels, metric, margin, precision)[0], reduction)


def weighted_triplet_loss(
    feat: Tensor,
    labels: Tensor,
    *,
    normalize: bool = False,
    stable: bool = False,
    reduction: str = "mean",
    precision: str = "exact",
) -> Tensor:
    r"""Weighted regularised triplet loss (WRT): log(1 + exp(sum_j w+_ij d_ij - sum_j w-_ij d_ij)).

    Weights are softmaxes of +d over the positives (the anchor included) and of -d over the negatives. The default
    keeps the published arithmetic, whose normaliser carries an extra 1e-6: once negatives lie farther than about 14
    their weights fade and the loss no longer sees them. Unit-length features are not affected. ``stable=True`` is a
    true softmax at any distance; an anchor without negatives then counts as 0. Neither overflows.

    Args:
        feat: [N, D].
        labels: [N] integers.
        normalize: divide each row by its norm + 1e-12 first.
        stable: see above.
        reduction: ``"mean"`` over the N anchors, ``"sum"`` or ``"none"``. The mean of no anchors is 0.
        precision: see :func:`pairwise_distance`.

    Returns:
        A scalar, or [N] for ``reduction="none"``.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: a few N x D arrays, never N x N. Source: spec idkl 13; Ye et al. 2021 (AGW).

    Example:
        >>> import torch
        >>> feat = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> round(weighted_triplet_loss(feat, torch.tensor([0, 0, 1, 1])).item(), 4)
        0.0197
    """
    _checks.rows("feat", feat)
    labels = _checks.labels("labels", labels, "feat", feat)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    _checks.one_of("precision", precision, PRECISIONS)
    if normalize:
        feat = feat.to(torch.promote_types(feat.dtype, torch.float32))
        feat = feat / (feat.norm(dim=1, keepdim=True) + 1e-12)
    loss, *_ = weighted_triplet(feat, labels, bool(stable), precision)
    return _reduce(loss, reduction)


def _mine(feat, labels, reference, reference_labels, metric, margin, precision):
    _checks.rows("feat", feat)
    labels = _checks.labels("labels", labels, "feat", feat)
    if (reference is None) != (reference_labels is None):
        missing = "reference" if reference is None else "reference_labels"
        raise ValueError(f"{missing}: expected reference and reference_labels together, got None")
    if reference is not None:
        _checks.rows("reference", reference)
        _checks.same_columns("reference", reference, "feat", feat)
        reference_labels = _checks.labels("reference_labels", reference_labels, "reference", reference)
    _checks.one_of("metric", metric, METRICS)
    _checks.one_of("precision", precision, PRECISIONS)
    if metric == "cosine":
        feat, reference = _unit(feat), None if reference is None else _unit(reference)
    margin = None if margin is None else float(margin)
    return batch_hard(feat, labels, reference, reference_labels, metric, margin, precision)


def _unit(feat: Tensor) -> Tensor:
    return _unit_rows(feat.to(torch.promote_types(feat.dtype, torch.float32)), eps=1e-12)


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" and loss.size(0) > 0 else loss.sum()
