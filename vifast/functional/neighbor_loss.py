from torch import Tensor

from vifast import _checks
from vifast.functional._common import METRICS, PRECISIONS, REDUCTIONS, reference_of, unit
from vifast.kernels.neighbor_loss import neighbor_loss as _neighbor_loss


def neighbor_loss(
    feat: Tensor,
    labels: Tensor,
    *,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    metric: str = "euclidean",
    temperature: float = 1.0,
    reduction: str = "mean",
    precision: str = "exact",
) -> Tensor:
    r"""Neighbor-probability loss: KL(uniform over own identity || softmax of minus distance over all others).

        loss_i = log sum_{j != i} exp(-d_ij / t) + mean_{j in P_i} d_ij / t - log |P_i|,  P_i = { j != i, y_j = y_i }

    With a reference, j runs over its rows, none left out. This is IDKL's unused "Fb" loss; with cosine distance it is
    supervised InfoNCE, less its least value log |P_i|.

    Args:
        feat: [N, D].
        labels: [N] integers of any value.
        reference: [M, D] neighbors in place of the rows of ``feat``; both get gradient.
        reference_labels: [M] integers, required with ``reference``.
        metric: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"`` (1 - cos), see :func:`pairwise_distance`.
        temperature: t, above 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. A row without others of its identity counts as 0.
        precision: see :func:`pairwise_distance`.

    Returns:
        A scalar, or [N] for ``reduction="none"``. A non-finite row is nobody's neighbor; its loss is NaN, and where it
        is in the reference, so are all. The gradients of the other rows stay finite.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: a few N x D and M x D arrays, never N x M. Source: spec idkl 4; dakd 5.5; Khosla et al. 2020.

    Example:
        >>> import torch
        >>> feat = torch.tensor([[0.0], [1.0], [3.0]])
        >>> round(neighbor_loss(feat, torch.tensor([0, 0, 1]), reduction="sum").item(), 4)
        0.4402
    """
    _checks.rows("feat", feat)
    labels = _checks.labels("labels", labels, "feat", feat)
    to_labels = reference_of(feat, reference, reference_labels)
    _checks.one_of("metric", metric, METRICS)
    _checks.positive("temperature", temperature)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    _checks.one_of("precision", precision, PRECISIONS)
    if metric == "cosine":
        feat, reference = unit(feat, reference)
    args = feat, labels, reference, to_labels, metric, float(temperature), precision, reduction
    return _neighbor_loss(*args)[0]
