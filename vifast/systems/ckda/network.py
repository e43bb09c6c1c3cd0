"""CKDA's network: prompts in the image, a vision transformer, a neck."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vifast.models import create_vit
from vifast.nn import BNNeck, ModalityPrompts
from vifast.systems.ckda.options import CKDAOptions


class CKDANetwork(nn.Module):
    """Images of both modalities to features; 85,876,408 parameters with `vit_base`.

    ========  ===========================================  ==================================
    part      what                                         of a 256 x 128 image
    ========  ===========================================  ==================================
    prompts   :class:`vifast.nn.ModalityPrompts`           x + P, 63,928 parameters
    backbone  :class:`vifast.models.ViT`, its stride 12,   210 patches and the class token,
              with an embedding of the modality            whose output is the feature [768]
    neck      :class:`vifast.nn.BNNeck`                    the feature of the classifier
    ========  ===========================================  ==================================

    ``forward(images [B, 3, H, W], modality [B])``: the feature before the neck [B, D], and the prompts, as images or
    None without any. ``unit(feat)`` is what retrieval, teacher and prototypes compare: after the neck, of unit length.

    Source: spec ckda 2 and 3.

    >>> network = CKDANetwork(CKDAOptions(backbone="vit_tiny_demo", image_size=(64, 32)))
    >>> feat, prompts = network(torch.zeros(2, 3, 64, 32), torch.tensor([0, 1]))
    >>> feat.shape, prompts.shape
    (torch.Size([2, 64]), torch.Size([2, 3, 64, 32]))
    """

    def __init__(self, options: CKDAOptions):
        super().__init__()
        self.prompts = None
        if options.specific or options.common:
            self.prompts = ModalityPrompts(
                specific=options.specific,
                common=options.common,
                dropout=options.prompt_dropout,
                running_at_eval=options.mcp_in_eval == "running",
            )
        self.backbone = create_vit(
            options.backbone,
            image_size=options.image_size or (256, 128),
            stride=options.stride,
            modalities=2,
            dropout=options.dropout,
            drop_path=options.drop_path,
        )
        self.neck = BNNeck(self.backbone.out_channels)

    def forward(self, images: Tensor, modality: Tensor) -> tuple[Tensor, Tensor | None]:
        prompts = None
        if self.prompts is not None:
            images, prompts = self.prompts(images, modality)
        return self.backbone(images, modality), prompts

    def unit(self, feat: Tensor) -> Tensor:
        rows = self.neck(feat)
        return normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)))
