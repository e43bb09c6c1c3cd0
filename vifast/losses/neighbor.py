from torch import Tensor, nn

from vifast import _checks, functional


class NeighborLoss(nn.Module):
    """The own identity among a row's neighbors, see :func:`vifast.functional.neighbor_loss`.

    Args:
        metric: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        temperature: above 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        precision: ``"exact"`` or ``"fast"``.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> NeighborLoss()(torch.eye(2), torch.tensor([0, 0])).item()
        0.0
    """

    def __init__(
        self,
        *,
        metric: str = "euclidean",
        temperature: float = 1.0,
        reduction: str = "mean",
        precision: str = "exact",
    ):
        super().__init__()
        _checks.one_of("metric", metric, functional.METRICS)
        _checks.positive("temperature", temperature)
        _checks.one_of("reduction", reduction, functional.REDUCTIONS)
        _checks.one_of("precision", precision, functional.PRECISIONS)
        self.metric, self.temperature, self.reduction, self.precision = metric, temperature, reduction, precision

    def forward(
        self,
        feat: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        return functional.neighbor_loss(
            feat,
            labels,
            reference=reference,
            reference_labels=reference_labels,
            metric=self.metric,
            temperature=self.temperature,
            reduction=self.reduction,
            precision=self.precision,
        )

    def extra_repr(self) -> str:
        return f"metric={self.metric!r}, temperature={self.temperature}, reduction={self.reduction!r}"
