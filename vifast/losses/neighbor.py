from torch import Tensor, nn

from vifast import _checks, functional


class NeighborLoss(nn.Module):
    """The own identity among a row's neighbors, see :func:`vifast.functional.neighbor_loss`.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        precision: ``"exact"`` or ``"fast"``.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> NeighborLoss()(torch.eye(2), torch.tensor([0, 0])).item()
        0.0
    """

    def __init__(self, *, reduction: str = "mean", precision: str = "exact"):
        super().__init__()
        _checks.one_of("reduction", reduction, functional.REDUCTIONS)
        _checks.one_of("precision", precision, functional.PRECISIONS)
        self.reduction, self.precision = reduction, precision

    def forward(self, feat: Tensor, labels: Tensor) -> Tensor:
        return functional.neighbor_loss(feat, labels, reduction=self.reduction, precision=self.precision)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
