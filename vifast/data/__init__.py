"""Datasets, samplers and loaders. `sysu` and `regdb` read, `synthetic` writes; the rest turns samples into batches."""

from vifast.data.loader import make_loader
from vifast.data.records import Dataset, Samples
from vifast.data.samplers import CrossModalSampler, IdklSampler, ReplacementSampler
from vifast.data.transforms import Augment

__all__ = ["Augment", "CrossModalSampler", "Dataset", "IdklSampler", "ReplacementSampler", "Samples", "make_loader"]
