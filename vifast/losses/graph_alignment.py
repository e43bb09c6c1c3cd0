from torch import Tensor, nn

from vifast import _checks, functional


class GraphAlignmentLoss(nn.Module):
    """Divergence between the distance graphs of two feature sets, see :func:`vifast.functional.graph_alignment`.

    Args:
        symmetric: add the divergence of the other direction.
        floor: least squared distance under the root, at least 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        precision: ``"exact"`` or ``"fast"``.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> GraphAlignmentLoss()(torch.eye(4), torch.eye(4)).item()
        0.0
    """

    def __init__(
        self,
        *,
        symmetric: bool = True,
        floor: float = 1e-6,
        reduction: str = "mean",
        precision: str = "exact",
    ):
        super().__init__()
        _checks.non_negative("floor", floor)
        _checks.one_of("reduction", reduction, functional.REDUCTIONS)
        _checks.one_of("precision", precision, functional.PRECISIONS)
        self.symmetric, self.floor, self.reduction, self.precision = symmetric, floor, reduction, precision

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return functional.graph_alignment(
            a, b, symmetric=self.symmetric, floor=self.floor, reduction=self.reduction, precision=self.precision
        )

    def extra_repr(self) -> str:
        return f"symmetric={self.symmetric}, floor={self.floor}, reduction={self.reduction!r}"
