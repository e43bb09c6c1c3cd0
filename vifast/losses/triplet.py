from torch import Tensor, nn

from vifast import _checks, functional


class TripletLoss(nn.Module):
    """Batch-hard triplet loss, see :func:`vifast.functional.triplet_loss`.

    Args:
        margin: at least 0, or ``None`` for the soft margin.
        metric: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        precision: ``"exact"`` or ``"fast"``.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> TripletLoss(margin=0.3)(torch.eye(4), torch.tensor([0, 0, 1, 1])).item()
        0.30000001192092896
    """

    def __init__(
        self,
        *,
        margin: float | None = 0.3,
        metric: str = "euclidean",
        reduction: str = "mean",
        precision: str = "exact",
    ):
        super().__init__()
        if margin is not None:
            _checks.non_negative("margin", margin)
        _checks.one_of("metric", metric, functional.METRICS)
        _checks.one_of("reduction", reduction, functional.REDUCTIONS)
        _checks.one_of("precision", precision, functional.PRECISIONS)
        self.margin, self.metric, self.reduction, self.precision = margin, metric, reduction, precision

    def forward(
        self,
        feat: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        return functional.triplet_loss(
            feat,
            labels,
            margin=self.margin,
            reference=reference,
            reference_labels=reference_labels,
            metric=self.metric,
            reduction=self.reduction,
            precision=self.precision,
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, metric={self.metric!r}, reduction={self.reduction!r}"
