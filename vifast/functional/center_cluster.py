from torch import Tensor

from vifast import _checks
from vifast.functional._common import PRECISIONS
from vifast.kernels.center_cluster import center_cluster as _center_cluster


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

    Memory: K x K distances of centers; on a GPU a center beside every row, and their N x N distances.
    Source: spec idkl 4.

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
    return _center_cluster(feat, labels, float(margin), precision)[0]
