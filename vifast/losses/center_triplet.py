from torch import Tensor, nn

from vifast import _checks, functional


class CenterTripletLoss(nn.Module):
    """Cross-modal triplets of centers and samples, see :func:`vifast.functional.center_triplet_loss`.

    Args:
        margin: at least 0.
        sample_weight: share of the center-to-sample half, 0 to 1.
        symmetric: anchor both center-to-sample terms on samples.
        precision: ``"exact"`` or ``"fast"``.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> loss = CenterTripletLoss(margin=1.2)(torch.eye(4), torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> round(loss.item(), 4)
        0.4412
    """

    def __init__(
        self,
        *,
        margin: float = 0.1,
        sample_weight: float = 0.5,
        symmetric: bool = False,
        precision: str = "exact",
    ):
        super().__init__()
        _checks.non_negative("margin", margin)
        _checks.within("sample_weight", sample_weight, 0, 1)
        _checks.one_of("precision", precision, functional.PRECISIONS)
        self.margin, self.sample_weight, self.symmetric, self.precision = margin, sample_weight, symmetric, precision

    def forward(self, feat_v: Tensor, feat_i: Tensor, labels: Tensor) -> Tensor:
        return functional.center_triplet_loss(
            feat_v,
            feat_i,
            labels,
            margin=self.margin,
            sample_weight=self.sample_weight,
            symmetric=self.symmetric,
            precision=self.precision,
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, sample_weight={self.sample_weight}, symmetric={self.symmetric}"
