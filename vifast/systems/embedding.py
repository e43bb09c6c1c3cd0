"""The network of MCE and DAKD: a ResNet with non-local blocks, pooled to an embedding; its trunk is AGW's too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from vifast.models import ResNet, create, load_backbone
from vifast.nn import BNNeck, GeM, NonLocal


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """Hyper-parameters of the network.

    The last ``non_local[s - 1]`` blocks of stage s are each followed by a non-local block. ``backbone_width`` None is
    the backbone's own width. ``weights`` is a torchvision checkpoint from which the backbone starts.
    """

    backbone: str = "resnet50"
    backbone_width: int | None = None
    weights: str | None = None
    non_local: tuple[int, int, int, int] = (0, 2, 3, 0)
    non_local_embed: int = 1
    gem_p: float = 3.0


def non_local_blocks(trunk: ResNet, counts: tuple[int, int, int, int], *, embed: int = 1) -> nn.ModuleDict:
    """Non-local blocks for the last ``counts[s - 1]`` blocks of stage s, named as ``ResNet.forward`` wants them.

    Raises:
        ValueError: a stage that has fewer blocks.

    >>> list(non_local_blocks(create("resnet18"), (0, 0, 2, 0)))
    ['3_0', '3_1']
    """
    modules = nn.ModuleDict()
    for stage, blocks in trunk.stages():
        count = counts[stage - 1]
        if not 0 <= count <= len(blocks):
            raise ValueError(f"non_local: stage {stage} has {len(blocks)} blocks, got {count}")
        for index in range(len(blocks) - count, len(blocks)):
            modules[f"{stage}_{index}"] = NonLocal(trunk.channels[stage], embed=embed)
    return modules


class EmbeddingNetwork(nn.Module):
    """One ResNet for both modalities with non-local blocks, GeM with a learnable exponent, and a BN neck.

    =========  ========================================  =====================================
    part       pieces                                    of ResNet-50
    =========  ========================================  =====================================
    trunk      stem and four stages, the last of         map of a 384 x 128 image:
               stride 1                                  2048 x 24 x 8
    non_local  after the last blocks of a stage,         after blocks 2, 3 of stage 2 and
               identity at first                         3, 4, 5 of stage 3
    pool       clamped at 1e-6, one exponent             2048
    neck       batch normalisation without shift         2048
    =========  ========================================  =====================================

    ``forward(images [N, 3, H, W])``: the neck's output [N, C] in training mode, scaled to unit length in evaluation
    mode; float32 also of a network in low precision. ``maps`` as in `ResNet`.

    Keywords are those of the trunk, see `ResNet`, where it is not the whole one.

    Source: spec dakd 2.

    >>> import torch
    >>> network = EmbeddingNetwork(EmbeddingOptions(backbone="resnet_tiny", non_local=(0, 1, 1, 0))).eval()
    >>> network(torch.zeros(2, 3, 64, 32)).shape
    torch.Size([2, 128])
    """

    def __init__(self, options: EmbeddingOptions, **trunk: Any):
        super().__init__()
        width = {"width": options.backbone_width} if options.backbone_width else {}
        self.trunk = create(options.backbone, **width, **trunk)
        if options.weights is not None:
            load_backbone(self.trunk, options.weights)
        self.non_local = non_local_blocks(self.trunk, options.non_local, embed=options.non_local_embed)
        self.pool = GeM(options.gem_p, learnable=True, eps=1e-6)
        self.neck = BNNeck(self.trunk.out_channels)

    @property
    def out_channels(self) -> int:
        return self.trunk.out_channels

    def forward(self, images: Tensor, *, maps: list[Tensor] | None = None) -> Tensor:
        feat = self.neck(self.pool(self.trunk(images, self.non_local, maps=maps)))
        return feat if self.training else normalize(feat)
