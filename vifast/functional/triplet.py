from torch import Tensor

from vifast import _checks
from vifast.functional._common import METRICS, PRECISIONS, REDUCTIONS, reference_of, unit
from vifast.kernels.batch_hard import batch_hard


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
    _, d_pos, d_neg, i_pos, i_neg = _mine(feat, labels, reference, reference_labels, metric, None, precision, "none")
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
    return _mine(feat, labels, reference, reference_labels, metric, margin, precision, reduction)[0]


def _mine(feat, labels, reference, reference_labels, metric, margin, precision, reduction):
    _checks.rows("feat", feat)
    labels = _checks.labels("labels", labels, "feat", feat)
    reference_labels = reference_of(feat, reference, reference_labels)
    _checks.one_of("metric", metric, METRICS)
    _checks.one_of("precision", precision, PRECISIONS)
    if metric == "cosine":
        feat, reference = unit(feat, reference)
    margin = None if margin is None else float(margin)
    return batch_hard(feat, labels, reference, reference_labels, metric, margin, precision, reduction)
