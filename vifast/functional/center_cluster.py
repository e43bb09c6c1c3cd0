import torch
from torch import Tensor

from vifast import _checks
from vifast.functional._common import PRECISIONS
from vifast.functional.pairwise_distance import pairwise_distance
from vifast.kernels.class_centers import row_centers


def center_cluster_loss(feat: Tensor, labels: Tensor, *, margin: float = 0.7, precision: str = "exact") -> Tensor:
    r"""Center-cluster loss: rows are drawn to the center of their identity, centers pushed ``margin`` apart.

    With c_k the mean row of identity k of the batch and P identities,

        mean_i ||f_i - c_{y_i}|| + mean_k mean_{l != k} max(0, margin - ||c_k - c_l||).

    An identity counts once among the centers, whatever its number of rows.

    Args:
        feat: [N, D].
        labels: [N] integers of any value.
        margin: at least 0.
        precision: see :func:`pairwise_distance`.

    Returns:
        A scalar. No rows: 0; a single identity is pushed by none.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: a center beside every row, and their N x N distances. Source: spec idkl 4.

    Example:
        >>> import torch
        >>> feat = torch.tensor([[0.0], [2.0], [1.5]])
        >>> round(center_cluster_loss(feat, torch.tensor([0, 0, 1])).item(), 4)
        0.8667
    """
    _checks.rows("feat", feat)
    labels = _checks.labels("labels", labels, "feat", feat)
    _checks.non_negative("margin", margin)
    _checks.one_of("precision", precision, PRECISIONS)
    centers, counts = row_centers(feat, labels)
    once = 1 / counts.to(centers.dtype)
    pull = (feat.to(centers.dtype) - centers).norm(dim=1).sum() / max(len(feat), 1)
    # A spoilt center makes the pull non-finite; its distances would spoil the gradient of all others.
    sound = centers.isfinite().all(1)
    dist = pairwise_distance(torch.where(sound.unsqueeze(1), centers, 0.0), precision=precision)
    others = (labels.unsqueeze(1) != labels) & sound.unsqueeze(1) & sound
    hinge = torch.where(others, (margin - dist).relu(), 0.0)
    identities = once.sum()
    pairs = (identities * (identities - 1)).clamp(min=1)
    return pull + (once.unsqueeze(1) * once * hinge).sum() / pairs
