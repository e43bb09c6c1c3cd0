"""Backbones with the parameter names of torchvision and timm, and the import of their published weights."""

from vifast.models.fold import fold_norms
from vifast.models.resnet import BACKBONES, ResNet, create
from vifast.models.vit import VITS, ViT, create_vit, load_vit
from vifast.models.weights import copy_tensors, load_backbone, read_saved, read_tensors

__all__ = [
    "BACKBONES",
    "VITS",
    "ResNet",
    "ViT",
    "copy_tensors",
    "create",
    "create_vit",
    "fold_norms",
    "load_backbone",
    "load_vit",
    "read_saved",
    "read_tensors",
]
