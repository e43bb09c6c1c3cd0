"""Backbones with the parameter names of torchvision, and the import of their published weights."""

from vifast.models.fold import fold_norms
from vifast.models.resnet import BACKBONES, ResNet, create
from vifast.models.weights import load_backbone, read_saved, read_tensors

__all__ = ["BACKBONES", "ResNet", "create", "fold_norms", "load_backbone", "read_saved", "read_tensors"]
