import torch
from torch import Tensor, nn

from vifast import _checks, functional


class CenterLoss(nn.Module):
    """Squared distance to learned class centers, see :func:`vifast.functional.center_loss`.

    Args:
        num_classes: K, at least 1.
        channels: D, at least 1.

    Attributes:
        centers: parameter [K, D], from a standard normal distribution.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> loss = CenterLoss(2, 3)
        >>> loss(loss.centers.detach(), torch.tensor([0, 1])).item()
        0.0
    """

    def __init__(self, num_classes: int, channels: int = 2048):
        super().__init__()
        _checks.count("num_classes", num_classes)
        _checks.count("channels", channels)
        self.centers = nn.Parameter(torch.randn(num_classes, channels))

    def forward(self, feat: Tensor, labels: Tensor) -> Tensor:
        return functional.center_loss(feat, labels, self.centers.to(feat.dtype))

    def extra_repr(self) -> str:
        num_classes, channels = self.centers.shape
        return f"num_classes={num_classes}, channels={channels}"


class CenterClusterLoss(nn.Module):
    """Rows to their batch center, centers apart, see :func:`vifast.functional.center_cluster_loss`.

    Args:
        margin: at least 0.
        precision: ``"exact"`` or ``"fast"``.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> CenterClusterLoss()(torch.eye(2), torch.tensor([0, 1])).item()
        0.0
    """

    def __init__(self, *, margin: float = 0.7, precision: str = "exact"):
        super().__init__()
        _checks.non_negative("margin", margin)
        _checks.one_of("precision", precision, functional.PRECISIONS)
        self.margin, self.precision = margin, precision

    def forward(self, feat: Tensor, labels: Tensor) -> Tensor:
        return functional.center_cluster_loss(feat, labels, margin=self.margin, precision=self.precision)

    def extra_repr(self) -> str:
        return f"margin={self.margin}"
