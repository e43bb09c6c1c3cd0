import torch
from torch import Tensor

from vifast import _checks
from vifast.functional._common import PRECISIONS, REDUCTIONS, reduced
from vifast.functional.pairwise_distance import pairwise_distance


def neighbor_loss(feat: Tensor, labels: Tensor, *, reduction: str = "mean", precision: str = "exact") -> Tensor:
    r"""Neighbor-probability ("Fb") loss: KL(uniform over own identity || softmax of minus distance over all others).

        loss_i = log sum_{j != i} exp(-d_ij) + mean_{j in P_i} d_ij - log |P_i|,   P_i = { j != i, y_j = y_i }

    Args:
        feat: [N, D].
        labels: [N] integers of any value.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. A row that is alone in its identity counts as 0.
        precision: see :func:`pairwise_distance`.

    Returns:
        A scalar, or [N] for ``reduction="none"``. A non-finite row has the loss NaN and is nobody's neighbor.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: N x N distances and probabilities. Source: spec idkl 4.

    Example:
        >>> import torch
        >>> feat = torch.tensor([[0.0], [1.0], [3.0]])
        >>> round(neighbor_loss(feat, torch.tensor([0, 0, 1]), reduction="sum").item(), 4)
        0.4402
    """
    _checks.rows("feat", feat)
    labels = _checks.labels("labels", labels, "feat", feat)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    _checks.one_of("precision", precision, PRECISIONS)
    sound = feat.isfinite().all(1)
    dist = pairwise_distance(torch.where(sound.unsqueeze(1), feat, 0.0), precision=precision)
    others = torch.eye(len(feat), dtype=torch.bool, device=feat.device).logical_not() & sound.unsqueeze(1) & sound
    positive = others & (labels.unsqueeze(1) == labels)
    count = positive.sum(1)
    # The lowest number and not -inf: a row without others would have the softmax of nothing.
    partition = torch.where(others, -dist, torch.finfo(dist.dtype).min).logsumexp(1)
    mean = torch.where(positive, dist, 0.0).sum(1) / count.clamp(min=1)
    rows = torch.where(count > 0, partition + mean - count.clamp(min=1).log(), 0.0)
    return reduced(torch.where(sound, rows, torch.nan), reduction)
