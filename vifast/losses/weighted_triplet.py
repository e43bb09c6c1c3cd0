from torch import Tensor, nn

from vifast import _checks, functional


class WeightedTripletLoss(nn.Module):
    """Weighted regularised triplet loss (WRT), see :func:`vifast.functional.weighted_triplet_loss`.

    Args:
        normalize: divide each row by its norm first.
        stable: a true masked softmax in place of the published arithmetic.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        precision: ``"exact"`` or ``"fast"``.

    Raises:
        ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> round(WeightedTripletLoss(normalize=True)(torch.eye(4), torch.tensor([0, 0, 1, 1])).item(), 4)
        0.5644
    """

    def __init__(
        self,
        *,
        normalize: bool = False,
        stable: bool = False,
        reduction: str = "mean",
        precision: str = "exact",
    ):
        super().__init__()
        _checks.one_of("reduction", reduction, functional.REDUCTIONS)
        _checks.one_of("precision", precision, functional.PRECISIONS)
        self.normalize, self.stable, self.reduction, self.precision = normalize, stable, reduction, precision

    def forward(self, feat: Tensor, labels: Tensor) -> Tensor:
        return functional.weighted_triplet_loss(
            feat,
            labels,
            normalize=self.normalize,
            stable=self.stable,
            reduction=self.reduction,
            precision=self.precision,
        )

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}, stable={self.stable}, reduction={self.reduction!r}"
