"""Datasets, samplers and loaders. `sysu` and `regdb` read, `synthetic` writes; the rest turns samples into batches."""

from vifast.data.augmentation import Augment
from vifast.data.cache import ImageCache, open_cache
from vifast.data.loader import Loader, make_loader
from vifast.data.records import Dataset, Samples
from vifast.data.samplers import CrossModalSampler, IdklSampler, ReplacementSampler

__all__ = [
    "Augment",
    "CrossModalSampler",
    "Dataset",
    "IdklSampler",
    "ImageCache",
    "Loader",
    "ReplacementSampler",
    "Samples",
    "make_loader",
    "open_cache",
]
