"""IDKL as a trainable system: network, objective, and the import of weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vifast.models import load_backbone
from vifast.nn import Purified
from vifast.systems.base import Batch, System
from vifast.systems.idkl.network import IDKLNetwork
from vifast.systems.idkl.objective import TERMS, IDKLObjective


@dataclass(frozen=True, kw_only=True)
class IDKLOptions:
    """Hyper-parameters of network and objective; defaults are the release's on SYSU-MM01.

    ``weights`` is a torchvision checkpoint from which the front and both branches start. Without ``purifier`` the
    specific map is pooled as it is. From ``margin`` on they are the objective's, see `IDKLObjective`.
    """

    backbone: str = "resnet50"
    backbone_width: int | None = None
    weights: str | None = None
    reduction: int = 16
    purifier: bool = True
    margin: float = 1.3
    graph: str = "full"
    distill: str = "symmetric"
    dropout: float = 0.5
    num_instances: int | None = None
    terms: tuple[str, ...] = TERMS


class IDKL(System):
    """Shared and modality-specific knowledge in two branches, of which the specific one teaches and is then left out.

    Expects batches as the samplers make them: identity by identity, infrared and visible images in turn, as many of
    each. The retrieval feature is the shared branch's neck output, scaled to unit length; the specific branch, its
    purifier and all heads exist for training alone.

    Source: Ren and Zhang 2024, spec idkl.

    >>> idkl = IDKL.build(IDKLOptions(backbone="resnet_tiny"), num_classes=5).eval()
    >>> idkl.embed({"image": torch.zeros(2, 3, 64, 32), "modality": torch.tensor([0, 1])}).shape
    torch.Size([2, 128])
    """

    Options = IDKLOptions

    def __init__(self, options: IDKLOptions, *, num_classes: int):
        super().__init__()
        self.network = IDKLNetwork(
            options.backbone,
            backbone_width=options.backbone_width,
            reduction=options.reduction,
            purifier=options.purifier,
        )
        if options.weights is not None:
            for piece in (self.network.front, self.network.shared, self.network.specific):
                load_backbone(piece, options.weights)
        terms = options.terms if options.purifier else tuple(term for term in options.terms if term != "purifier")
        self.objective = IDKLObjective(
            num_classes,
            self.network.out_channels,
            margin=options.margin,
            graph=options.graph,
            distill=options.distill,
            dropout=options.dropout,
            num_instances=options.num_instances,
            terms=terms,
        )

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        with self.watch("forward"):
            shared, purified = self.network(batch["image"])
        # Pooled features are float32, and so is everything that is computed of them.
        with self.watch("losses"), torch.autocast(shared.device.type, enabled=False):
            shared, *vectors, labels, modality = self.mined(shared, *purified, batch["label"], batch["modality"])
            return self.objective(shared, Purified(*vectors), labels, modality)

    def embed(self, batch: Batch) -> Tensor:
        return normalize(self.objective.neck_shared(self.network.pooled_shared(batch["image"])).float())

    def backbones(self) -> list[nn.Module]:
        return [self.network.front, self.network.shared, self.network.specific]
