"""What the batch samplers share: the images of every identity, the position in an epoch, the share of one process."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from vifast import _checks


class IdentitySampler(Sampler[list[int]], ABC):
    """Batches of `num_ids` identities with `num_instances` infrared and as many visible images each.

    A subclass draws an epoch's batches in `_draw`; they are a pure function of `(seed, epoch)`. Pass the sampler as
    `batch_sampler` and call `set_epoch` before each epoch.

    **Resuming.** `start_at(epoch, step)` begins the next iteration with batch `step`; those before it are drawn but
    not decoded. Count the batches that were trained on: a loader that prefetches has asked for more.

    **Several processes.** With `world_size` W the processes share one batch: rank r takes the r-th W-th part of its
    identities, and the ranks in order give the batch of a single process. Accelerate must not divide such a sampler
    again: leave the loader out of `prepare`.

    **Layouts.** `"alternating"`: identity after identity, each infrared, visible, infrared, visible, .. (the order
    IDKL's position-based terms rely on), so `batch[0::2]` and `batch[1::2]` list the same identities. `"halves"`: all
    visible, then all infrared images, the same identities in both.

    Attributes:
        batch_size: rows of a batch of this process, `2 * num_ids * num_instances / world_size`.
        epoch, step: where the next iteration begins.
    """

    layout = "alternating"

    def __init__(
        self,
        labels,
        modality,
        *,
        num_ids: int,
        num_instances: int,
        num_batches: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        images = self._usable(images_by_identity(labels, modality), num_instances)
        for name, value, least in (
            ("num_ids", num_ids, 1),
            ("num_instances", num_instances, 1),
            ("num_batches", 1 if num_batches is None else num_batches, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
            ("rank", rank, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value!r}")
        if len(images) < num_ids:
            raise ValueError(f"num_ids: expected at most {len(images)}, the identities in labels, got {num_ids}")
        if num_ids % world_size:
            raise ValueError(f"num_ids: expected a multiple of world_size {world_size}, got {num_ids}")
        if rank >= world_size:
            raise ValueError(f"rank: expected less than world_size {world_size}, got {rank}")
        for identity, rows in images.items():
            for name, found in zip(("infrared", "visible"), rows, strict=True):
                if not len(found):
                    raise ValueError(f"labels: identity {identity} has no {name} image")
        self._images = list(images.values())
        self.num_ids, self.num_instances, self.seed = num_ids, num_instances, seed
        self.num_batches = self._whole_epoch() if num_batches is None else num_batches
        self.rank, self.world_size = rank, world_size
        self.batch_size, self.drop_last = 2 * num_ids * num_instances // world_size, True
        self.epoch = self.step = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration yields."""
        self.start_at(epoch, 0)

    def start_at(self, epoch: int, step: int) -> None:
        """The next iteration yields the batches of `epoch` from number `step` (from 0) on."""
        _checks.count("epoch", epoch, 0)
        _checks.count("step", step, 0)
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        """Batches of the whole epoch, wherever the next iteration begins."""
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        part = self.num_ids // self.world_size
        own = slice(self.rank * part, (self.rank + 1) * part)
        for batch in itertools.islice(self._draw(self.epoch), self.step, len(self)):
            rows = batch[own]
            rows = rows.transpose(0, 2, 1) if self.layout == "alternating" else rows[:, ::-1].transpose(1, 0, 2)
            yield rows.reshape(-1).tolist()

    def _usable(self, images: dict, num_instances: int) -> dict:
        """The identities that take part."""
        return images

    def _most(self) -> int:
        """Images of the larger modality."""
        return max(sum(map(len, rows)) for rows in zip(*self._images, strict=True))

    @abstractmethod
    def _whole_epoch(self) -> int | None:
        """Batches of an epoch if nobody says how many; None where that depends on the draws."""

    @abstractmethod
    def _draw(self, epoch: int) -> Iterable[np.ndarray]:
        """The batches of an epoch, each as rows `[num_ids, 2, num_instances]`, infrared before visible."""


def images_by_identity(labels, modality) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The infrared and the visible rows of every identity, identities ascending.

    Raises:
        ValueError: no columns of integers of one length, or a modality other than 0 and 1.
    """
    labels, modality = _column("labels", labels), _column("modality", modality)
    if labels.shape != modality.shape:
        raise ValueError(f"modality: expected shape {labels.shape} as labels, got {modality.shape}")
    if not np.isin(modality, (0, 1)).all():
        raise ValueError(f"modality: expected 0 or 1, got {modality[~np.isin(modality, (0, 1))][0]}")
    order = np.lexsort((modality, labels))  # stable: rows ascend within an identity and modality
    identities, starts = np.unique(labels[order], return_index=True)
    images = {}
    for identity, rows in zip(identities.tolist(), np.split(order, starts[1:]), strict=True):
        visible = np.searchsorted(modality[rows], 1)
        images[identity] = rows[visible:], rows[:visible]
    return images


def _column(name: str, values) -> np.ndarray:
    column = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    if column.ndim != 1 or not len(column) or column.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected a non-empty column of integers, got shape {column.shape}, {column.dtype}")
    return column
