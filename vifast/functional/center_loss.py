import torch
from torch import Tensor
from torch.nn.functional import embedding

from vifast import _checks


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

    Memory: the centers of the rows, and the gradients. Source: spec idkl 4; Wen et al. 2016.

    Example:
        >>> import torch
        >>> center_loss(torch.tensor([[1.0], [4.0]]), torch.tensor([0, 1]), torch.tensor([[0.0], [2.0]])).item()
        1.25
    """
    _checks.rows("feat", feat)
    labels = _checks.labels("labels", labels, "feat", feat)
    _checks.rows("centers", centers)
    _checks.same_columns("centers", centers, "feat", feat)
    acc = torch.promote_types(feat.dtype, torch.float32)
    if feat.size(0) * centers.size(0) == 0:
        return 0.0 * (feat.to(acc).sum() + centers.to(acc).sum())
    inside = (labels >= 0) & (labels < len(centers))
    own = embedding(torch.where(inside, labels, 0), centers.to(acc))  # its gradient is summed in a fixed order
    square = (feat.to(acc) - own).square().sum(1)
    return torch.where(inside, square, 0.0).sum() / (len(feat) * len(centers))
