"""Modules that sit in a re-identification network: pooling, neck, non-local block, purifier, prompts."""

from vifast.nn.frozen import Frozen
from vifast.nn.gem import GeM
from vifast.nn.neck import BNNeck
from vifast.nn.non_local import NonLocal
from vifast.nn.prompts import ModalityPrompts
from vifast.nn.purifier import InstanceNormPurifier, Purified
from vifast.nn.split_batch_norm import SplitBatchNorm1d, SplitBatchNorm2d, split_batch_norms

__all__ = [
    "BNNeck",
    "Frozen",
    "GeM",
    "InstanceNormPurifier",
    "ModalityPrompts",
    "NonLocal",
    "Purified",
    "SplitBatchNorm1d",
    "SplitBatchNorm2d",
    "split_batch_norms",
]
