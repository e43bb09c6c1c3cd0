"""IDKL's network: a common front, and two branches of which retrieval needs one."""

from __future__ import annotations

from torch import Tensor, nn

from vifast.models import create
from vifast.nn import GeM, InstanceNormPurifier, Purified


class IDKLNetwork(nn.Module):
    """One ResNet for both modalities up to its second stage, then two branches of stages 3 and 4.

    =========  ===============================  ==========================================
    part       pieces                           map of a 384 x 144 image (ResNet-50)
    =========  ===============================  ==========================================
    front      stem, stage 1, stage 2           512 x 48 x 18
    shared     stages 3 and 4, the last of      2048 x 24 x 9, pooled to the feature
               stride 1                         before its neck
    specific   the same, other weights          2048 x 24 x 9, to the purifier
    purifier   :class:`InstanceNormPurifier`    five pooled vectors
    =========  ===============================  ==========================================

    Only what is used is allocated: 46,623,808 parameters of a ResNet-50. Pooling is GeM with p = 3, clamped at 1e-6.

    Args:
        backbone: a name of `vifast.models.BACKBONES`; ``backbone_width`` None is its own width.
        reduction: of the purifier's masks.
        purifier: without it the specific map is pooled as it is, and all five vectors are that one.

    ``forward(images [N, 3, H, W])``: the shared branch's pooled vectors [N, C], and :class:`Purified` of the specific
    one. ``pooled_shared(images)`` is the first alone, and runs the front and the shared branch alone.

    Source: spec idkl 2 and 3.

    >>> import torch
    >>> shared, purified = IDKLNetwork("resnet_tiny", backbone_width=16)(torch.zeros(2, 3, 64, 32))
    >>> shared.shape, purified.fused.shape
    (torch.Size([2, 128]), torch.Size([2, 128]))
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        backbone_width: int | None = None,
        reduction: int = 16,
        purifier: bool = True,
    ):
        super().__init__()
        width = {"width": backbone_width} if backbone_width else {}
        self.front = create(backbone, last=2, **width)
        self.shared = create(backbone, first=3, **width)
        self.specific = create(backbone, first=3, **width)
        self.purifier = InstanceNormPurifier(self.shared.out_channels, reduction) if purifier else None
        self.pool = GeM(3.0)

    @property
    def out_channels(self) -> int:
        return self.shared.out_channels

    def forward(self, images: Tensor) -> tuple[Tensor, Purified]:
        low = self.front(images)
        x = self.specific(low)
        purified = Purified(*[self.pool(x)] * len(Purified._fields)) if self.purifier is None else self.purifier(x)
        return self.pool(self.shared(low)), purified

    def pooled_shared(self, images: Tensor) -> Tensor:
        return self.pool(self.shared(self.front(images)))
