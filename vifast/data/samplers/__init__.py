"""Batch samplers for cross-modal metric learning: lists of rows, identities with images of both modalities."""

from vifast.data.samplers.identity import IdentitySampler
from vifast.data.samplers.idkl import IdklSampler
from vifast.data.samplers.pk import CrossModalSampler
from vifast.data.samplers.replacement import ReplacementSampler

__all__ = ["CrossModalSampler", "IdentitySampler", "IdklSampler", "ReplacementSampler"]
