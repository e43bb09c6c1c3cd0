"""AGW: the two-stream baseline of visible-infrared re-identification."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vifast.losses import WeightedTripletLoss
from vifast.models import create, load_backbone
from vifast.nn import BNNeck, GeM
from vifast.systems.base import Batch, System
from vifast.systems.embedding import EmbeddingOptions, non_local_blocks


@dataclass(frozen=True, kw_only=True)
class AGWOptions(EmbeddingOptions):
    """Hyper-parameters of the network; defaults are AGW's. ``weights`` are for stems and trunk."""


class AGW(System):
    """A stem per modality, a shared ResNet with non-local blocks, GeM, BN neck, bias-free classifier.

    Objective ``ce + wrt``: cross-entropy of the classifier's logits (after the neck) and the weighted
    regularised triplet loss of the pooled feature (before it), mined over both modalities together. The
    retrieval feature is the neck's output, scaled to unit length.

    Source: Ye et al. 2021, "Deep Learning for Person Re-identification: A Survey and Outlook", section 4, and
    its cross-modality variant.

    >>> agw = AGW.build(AGWOptions(backbone="resnet_tiny", non_local=(0, 0, 1, 0)), num_classes=5).eval()
    >>> agw.embed({"image": torch.zeros(2, 3, 64, 32), "modality": torch.tensor([0, 1])}).shape
    torch.Size([2, 128])
    """

    Options = AGWOptions

    def __init__(self, options: AGWOptions, *, num_classes: int):
        super().__init__()
        width = {"width": options.backbone_width} if options.backbone_width else {}
        self.stem_visible = create(options.backbone, last=0, **width)
        self.stem_infrared = create(options.backbone, last=0, **width)
        self.trunk = create(options.backbone, first=1, **width)
        if options.weights is not None:
            for piece in (self.stem_visible, self.stem_infrared, self.trunk):
                load_backbone(piece, options.weights)
        self.non_local = non_local_blocks(self.trunk, options.non_local, embed=options.non_local_embed)
        self.pool = GeM(options.gem_p, clamp=False, eps=1e-12)
        self.neck = BNNeck(self.trunk.out_channels)
        self.classifier = nn.Linear(self.trunk.out_channels, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)
        self.triplet = WeightedTripletLoss()

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        with self.watch("forward"):
            feat = self._pooled(batch)
        with self.watch("losses"):
            feat, labels = self.mined(feat, batch["label"])
            logits = self.classifier(self.neck(feat))
            cross_entropy = functional.cross_entropy(logits.float(), labels)
            weighted_triplet = self.triplet(feat, labels)
        return {"loss": cross_entropy + weighted_triplet, "ce": cross_entropy, "wrt": weighted_triplet}

    def embed(self, batch: Batch) -> Tensor:
        return functional.normalize(self.neck(self._pooled(batch)).float())

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``"head"``: neck and classifier; ``"backbone"``: everything before them."""
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "head": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups["head" if name.startswith(("neck.", "classifier.")) else "backbone"].append(parameter)
        return groups

    def backbones(self) -> list[nn.Module]:
        return [self.trunk]  # the stems run the same code on other map sizes, which would make its sizes symbols

    def _pooled(self, batch: Batch) -> Tensor:
        x, order = self._stems(batch["image"], batch["modality"])
        return self.pool(self.trunk(x, self.non_local))[order]

    def _stems(self, images: Tensor, modality: Tensor) -> tuple[Tensor, Tensor]:
        """Maps with the visible images first, and the index that brings rows back to the batch's order."""
        infrared = modality.bool()
        parts = [
            (self.stem_visible, (~infrared).nonzero()[:, 0]),
            (self.stem_infrared, infrared.nonzero()[:, 0]),
        ]
        maps = torch.cat([stem(images[rows]) for stem, rows in parts if len(rows)])
        return maps, torch.cat([rows for _, rows in parts]).argsort()
