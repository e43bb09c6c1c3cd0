from torch import Tensor

from vifast import _checks
from vifast.kernels.center_loss import center_loss as _center_loss


def center_loss(feat: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    r"""Center loss, sum_i ||f_i - c_{y_i}||^2 / (N K): the mean over all N K pairs, of which only own centers count.

    Args:
        feat: [N, D].
        labels: [N] integers. A row whose label is not in 0 .. K - 1 adds nothing.
        centers: [K, D] centers of the classes, same dtype and device; usually learned.

    Returns:
        A scalar. No rows or no classes: 0.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: the gradients. Source: spec idkl 4; Wen et al. 2016.

    Example:
        >>> import torch
        >>> center_loss(torch.tensor([[1.0], [4.0]]), torch.tensor([0, 1]), torch.tensor([[0.0], [2.0]])).item()
        1.25
    """
    _checks.rows("feat", feat)
    labels = _checks.labels("labels", labels, "feat", feat)
    _checks.rows("centers", centers)
    _checks.same_columns("centers", centers, "feat", feat)
    return _center_loss(feat, labels, centers)
