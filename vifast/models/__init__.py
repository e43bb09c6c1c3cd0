"""Backbones with the parameter names of torchvision, and the import of their published weights."""

from vifast.models.resnet import BACKBONES, ResNet, create
from vifast.models.weights import load_backbone, read_saved, read_tensors

__all__ = ["BACKBONES", "ResNet", "create", "load_backbone", "read_saved", "read_tensors"]
