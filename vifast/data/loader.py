"""Batches for training and evaluation: decoded ahead of the caller, augmented at once on the device they are for."""

import os
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, SequentialSampler

from vifast import _checks
from vifast.data.augmentation import Augment, Exchange, partners
from vifast.data.cache import ImageCache
from vifast.data.dali import DaliSource, why_missing
from vifast.data.records import VISIBLE, Samples
from vifast.data.resize import check_size
from vifast.data.sources import Files, MemorySource, PillowSource
from vifast.functional import AugmentParams, augment

LOADERS = ("auto", "dali", "pillow")
MOST_WORKERS = 8  # of those that are taken by themselves


class Loader:
    """Iterable of batches, see :func:`make_loader`. Each iteration asks the batch sampler anew.

    Attributes:
        batch_sampler: as given.
        loader: `"dali"`, `"pillow"` or `"memory"`: who decodes.
        seed: as given.
    """

    def __init__(self, samples, source, loader, batch_sampler, policies, seed, size, device, dtype, channels_last):
        self.batch_sampler, self.loader, self.seed = batch_sampler, loader, seed
        self._samples, self._source, self._size = samples, source, size
        self._policy, self._auxiliary, self._weak = policies
        self._device, self._augment = device, partial(augment, dtype=dtype, channels_last=channels_last)
        self._columns = [torch.from_numpy(column) for column in (samples.labels, samples.cams, samples.modality)]
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, for the sampler as well if it has one."""
        self._epoch = epoch
        if hasattr(self.batch_sampler, "set_epoch"):
            self.batch_sampler.set_epoch(epoch)

    def start_at(self, epoch: int, step: int) -> None:
        """As the sampler's: the next iteration begins with batch `step` of `epoch`."""
        self._epoch = epoch
        self.batch_sampler.start_at(epoch, step)

    def plain(self, batch_size: int = 64) -> "Loader":
        """All samples in order, only normalised, of the same files or cache; not while this loader is iterated."""
        other = copy(self)
        other.batch_sampler, other._policy = _in_order(self._samples, batch_size), None
        other._auxiliary = other._weak = None
        return other

    def share(self, rank: int, world_size: int) -> "Loader":
        """Every `world_size`-th batch from the one of number `rank` on; where they end the first ones come again, so
        that every process has as many. Not while this loader is iterated."""
        other, batches = copy(self), list(self.batch_sampler)
        rounds = -(-len(batches) // world_size)
        other.batch_sampler = [batches[(k * world_size + rank) % len(batches)] for k in range(rounds)]
        return other

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch = getattr(self.batch_sampler, "epoch", self._epoch)
        for rows, images in self._source.batches(self.batch_sampler):
            yield self._batch(torch.tensor(rows), images, epoch)

    def _batch(self, index: Tensor, images: Tensor, epoch: int) -> dict[str, Tensor]:
        label, camera, modality = (column[index] for column in self._columns)
        columns = {"label": label, "camera": camera, "modality": modality, "index": index}
        if self._policy is None:
            params = AugmentParams.identity(len(index))
        else:
            partner = partners(label, modality) if self._policy.mixes else None
            params = self._policy.draw(index, modality, self._size, seed=self.seed, epoch=epoch, partner=partner)
        images = self._there(images)
        views = {"image": self._augment(images, self._there(params))}
        if self._auxiliary is not None:
            visible = (modality == VISIBLE).nonzero()[:, 0]
            drawn = {"seed": self.seed, "epoch": epoch, "view": 1}
            params = self._auxiliary.draw(index[visible], modality[visible], self._size, **drawn)
            views["auxiliary"] = self._augment(images[self._there(visible)], self._there(params))
        if self._weak is not None:
            params = self._weak.draw(index, modality, self._size, seed=self.seed, epoch=epoch, view=2)
            views["weak"] = self._augment(images, self._there(params))
        return views | {name: self._there(column) for name, column in columns.items()}

    def _there(self, part):
        return part if self._device.type == "cpu" else part.to(self._device, non_blocking=True)


def make_loader(
    samples: Samples,
    *,
    size: tuple[int, int],
    resample: str = "bilinear",
    augment: Augment | None = None,
    auxiliary: bool = False,
    weak: bool = False,
    batch_sampler: Iterable[list[int]] | None = None,
    batch_size: int = 64,
    loader: str = "auto",
    num_workers: int | None = None,
    cache: ImageCache | None = None,
    on_damage: str = "error",
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Loader:
    """Batches of `samples`; the same seed gives the same bits for any loader, number of workers and batches.

    On the CPU, that is: DALI on a GPU has another decoder and rounds otherwise, see docs/data.md. Call `set_epoch`
    before every epoch of training. The loader belongs to one process; to share batches out over several, give it the
    sampler of one (`rank` and `world_size` of the samplers). Accelerate's `prepare` leaves it as it is.

    Args:
        samples: what to load.
        size: (height, width) of the images.
        resample: filter of the resize, `"bilinear"` or `"lanczos"`.
        augment: what happens to images in training; None only normalises.
        auxiliary: hand over the visible images of a batch once more, as `auxiliary` in their order: augmented by draws
            of their own (view 1 of `Augment.draw`), then each shown in one of its channels. Needs an `augment` that
            neither mixes images nor swaps colours.
        weak: hand over all images of a batch once more, as `weak`: only cropped and flipped as `augment` says, by draws
            of their own (view 2). Needs an `augment`.
        batch_sampler: lists of rows, e.g. `CrossModalSampler`; by default all samples in order, `batch_size` at once.
        batch_size: images of a batch without a `batch_sampler`.
        loader: who decodes: `"dali"`, `"pillow"`, or `"auto"`, which is DALI where it is installed.
        num_workers: threads that decode, two batches ahead; None for one a processor, 8 at most. With 0 Pillow decodes
            in the caller when asked, and DALI has one thread.
        cache: the same images decoded, of `open_cache`; then no file is read and `resample` is the cache's.
        on_damage: `"error"` raises for a file that cannot be decoded; `"skip"` logs it and takes the next image of the
            same identity and modality in its place (`index` says which).
        seed: key of the augmentation's random numbers.
        device: where batches are augmented and handed over.
        dtype: of the images: float32, bfloat16 or float16.
        channels_last: memory format of the images.

    Returns:
        Iterable with a length, of dicts: `image [B, 3, H, W]`, `label`, `camera`, `modality`, `index` `[B]` int64, and
        `auxiliary` and `weak`.

    Raises:
        ValueError: an argument is out of range; or, when an image is read, it cannot be decoded (its path is named).
        ImportError: `loader="dali"` without DALI.
    """
    _checks.count("batch_size", batch_size)
    if num_workers is None:
        num_workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    _checks.count("num_workers", num_workers, 0)
    _checks.count("seed", seed, 0)
    check_size(size, resample)
    _checks.one_of("loader", loader, LOADERS)
    policies = augment, _in_one_channel(augment) if auxiliary else None, _geometry(augment) if weak else None
    if not len(samples):
        raise ValueError("samples: expected at least one image, got none")
    size, device = tuple(size), torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if batch_sampler is None:
        batch_sampler = _in_order(samples, batch_size)
    files, pinned = Files(samples, size, resample, on_damage), device.type == "cuda"
    if cache is not None:
        if (len(cache), *cache.size) != (len(samples), *size):
            got = f"{len(cache)} at {cache.size}"
            raise ValueError(f"cache: expected {len(samples)} images at {size} as in samples, got {got}")
        loader, source = "memory", MemorySource(cache, pinned=pinned)
    elif _chosen(loader) == "dali":
        loader, source = "dali", DaliSource(files, threads=max(num_workers, 1), device=device)
    else:
        loader, source = "pillow", PillowSource(files, threads=num_workers, pinned=pinned)
    return Loader(samples, source, loader, batch_sampler, policies, seed, size, device, dtype, channels_last)


def _in_order(samples: Samples, batch_size: int) -> BatchSampler:
    return BatchSampler(SequentialSampler(range(len(samples))), batch_size, drop_last=False)


def _in_one_channel(augment: Augment | None) -> Augment:
    if augment is None or augment.mixes:
        raise ValueError(f"auxiliary: expected an augment that does not mix images, got {augment}")
    return replace(augment, exchange_visible=Exchange(channel=1.0))


def _geometry(augment: Augment | None) -> Augment:
    if augment is None:
        raise ValueError("weak: expected an augment, whose crop and flip it takes, got None")
    return Augment(flip=augment.flip, pad=augment.pad, pad_value=augment.pad_value)


def _chosen(loader: str) -> str:
    if loader == "pillow":
        return loader
    missing = why_missing()
    if missing is None:
        return "dali"
    if loader == "dali":
        raise ImportError(f"loader: {missing}")
    return "pillow"
