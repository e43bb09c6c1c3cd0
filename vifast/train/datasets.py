"""From a configuration to its dataset and loaders."""

from collections.abc import Sized
from dataclasses import replace
from functools import reduce

import torch

from vifast import systems
from vifast.data import (
    CrossModalSampler,
    Dataset,
    IdklSampler,
    ImageCache,
    Loader,
    ReplacementSampler,
    Samples,
    make_loader,
    open_cache,
)
from vifast.data.layouts import READERS
from vifast.data.records import joined
from vifast.data.samplers import IdentitySampler
from vifast.train.config import ConfigError, DatasetConfig, TrainConfig

_OPTIONS = {  # of DatasetConfig, by reader
    "sysu": ("mode", "shots", "draw"),
    "regdb": ("split", "direction"),
    "llcm": ("direction", "draw"),
    "vcm": ("direction", "frames", "min_frames", "level"),
}
_SAMPLERS = {"pk": CrossModalSampler, "idkl": IdklSampler, "with_replacement": ReplacementSampler}
_CHECKS = ("on_damage", "decode")  # of every reader


def open_dataset(config: TrainConfig) -> Dataset:
    """The dataset of ``config.data`` as its protocol reads it.

    Raises:
        ConfigError: no ``data`` is configured.
        FileNotFoundError, ValueError: the reader's, naming path and line.
    """
    if config.data is None:
        raise ConfigError("data: expected the dataset's root folder, for example data=/path/to/SYSU-MM01")
    given = {name: getattr(config.dataset, name) for name in (*_OPTIONS[config.dataset.name], *_CHECKS)}
    options = {name: value for name, value in given.items() if value is not None}
    return _limited(READERS[config.dataset.name](config.data, **options), config.dataset)


def _limited(dataset: Dataset, options: DatasetConfig) -> Dataset:
    """Labels below ``train_ids`` alone; images of others come last, where they are kept at all."""
    if options.train_ids is None or options.train_ids >= dataset.num_labels:
        return dataset
    trained = dataset.train.labels < options.train_ids
    parts = [dataset.train.select(trained)] + [dataset.train.select(~trained)] * (options.untrained == "prototypes")
    return replace(dataset, train=reduce(joined, parts), identities=dataset.identities[: options.train_ids])


def train_sampler(dataset: Dataset, config: TrainConfig, *, rank: int = 0, world_size: int = 1) -> IdentitySampler:
    """Cross-modal PxK batches of the training split by their positions, or the share of one process in them."""
    options = config.dataset
    trained = dataset.train.labels < dataset.num_labels  # the first rows, see `_limited`
    return _SAMPLERS[options.sampler](
        dataset.train.labels[trained],
        dataset.train.modality[trained],
        num_ids=options.num_ids,
        num_instances=options.num_instances,
        num_batches=config.steps_per_epoch,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        **({"short": options.short} if options.sampler == "idkl" else {}),
    )


def train_loader(
    dataset: Dataset, config: TrainConfig, *, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"
) -> Loader:
    """The batches of `train_sampler`, augmented, on `device`."""
    options = config.dataset
    return make_loader(
        dataset.train,
        size=(options.height, options.width),
        augment=options.augment,
        auxiliary=systems.get(config.system).auxiliary,
        weak=weak_view(config),
        batch_sampler=train_sampler(dataset, config, rank=rank, world_size=world_size),
        on_damage=options.on_damage,
        channels_last=config.channels_last,
        device=device,
        **_decoding(options),
        cache=image_cache(dataset.train, config) if options.cache != "none" else None,
        seed=config.seed,
    )


def weak_view(config: TrainConfig) -> bool:
    """Whether batches have the images once more, for a teacher with a view of its own."""
    return getattr(config.options, "teacher_view", "shared") == "weak"


def epoch_steps(batches: Sized, config: TrainConfig) -> int:
    """Optimiser steps of an epoch of a loader or a sampler; the last one may have fewer batches than the others."""
    return -(-len(batches) // config.accumulate)


def eval_loader(samples: Samples, config: TrainConfig, *, device: torch.device | str = "cpu") -> Loader:
    """All samples of a test set in order, resized and normalised only; a file that cannot be decoded is always an
    error."""
    options = config.dataset
    if options.swapped_flags:
        samples = replace(samples, modality=1 - samples.modality)
    return make_loader(
        samples,
        size=(options.height, options.width),
        device=device,
        **_decoding(options),
        cache=image_cache(samples, config) if options.cache == "disk" else None,
    )


def _decoding(options: DatasetConfig) -> dict:
    return {"loader": options.loader, "num_workers": options.workers, "resample": options.resample}


def image_cache(samples: Samples, config: TrainConfig, *, rebuild: bool = False) -> ImageCache:
    """The decoded images of `samples`, in memory or, with ``dataset.cache=disk``, in the run's cache folder."""
    options = config.dataset
    folder = None if options.cache != "disk" else options.cache_folder or config.data / ".vifast-cache"
    return open_cache(
        samples, size=(options.height, options.width), resample=options.resample, folder=folder, rebuild=rebuild
    )
