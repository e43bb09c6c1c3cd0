import torch
from torch import Tensor

from vifast import _checks
from vifast.functional._common import PRECISIONS, REDUCTIONS
from vifast.kernels.weighted_triplet import weighted_triplet


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
    return weighted_triplet(feat, labels, bool(stable), precision, reduction)[0]
