from collections.abc import Sequence

from torch import Tensor, nn

from vifast import _checks, functional


class StandardizedKLLoss(nn.Module):
    """Divergence of standardised, tempered rows, see :func:`vifast.functional.standardized_kl`.

    Args:
        temperatures: numbers above 0.
        weights: one number at least 0 per temperature; default 1 each.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        standardize: ``"zscore"`` or ``"none"``.
        ddof: 0 or 1, taken from D in the deviation.
        eps: at least 0, added to the deviation.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> round(StandardizedKLLoss()(torch.eye(3), torch.eye(3).flip(0)).item(), 4)
        3.5445
    """

    def __init__(
        self,
        temperatures: Sequence[float] = (2, 3, 4, 5, 6),
        *,
        weights: Sequence[float] | None = None,
        reduction: str = "mean",
        standardize: str = "zscore",
        ddof: int = 1,
        eps: float = 1e-7,
    ):
        super().__init__()
        self.temperatures = tuple(_checks.number_list("temperatures", temperatures, _checks.positive))
        if weights is not None:
            weights = tuple(_checks.number_list("weights", weights, _checks.non_negative, len(self.temperatures)))
        _checks.one_of("reduction", reduction, functional.REDUCTIONS)
        _checks.one_of("standardize", standardize, functional.STANDARDIZE)
        _checks.one_of("ddof", ddof, (0, 1))
        _checks.non_negative("eps", eps)
        self.weights, self.reduction, self.standardize, self.ddof, self.eps = weights, reduction, standardize, ddof, eps

    def forward(self, student: Tensor, teacher: Tensor, keep: Tensor | None = None) -> Tensor:
        return functional.standardized_kl(
            student,
            teacher,
            self.temperatures,
            weights=self.weights,
            keep=keep,
            reduction=self.reduction,
            standardize=self.standardize,
            ddof=self.ddof,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"temperatures={self.temperatures}, standardize={self.standardize!r}, reduction={self.reduction!r}"
