"""Batch samplers for cross-modal metric learning."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


class CrossModalSampler(Sampler[list[int]]):
    """PxK batches over both modalities: of `num_ids` identities `num_instances` visible and as many infrared images.

    A batch is identity-major and alternates infrared, visible, infrared, visible ... (the order IDKL's position-based
    terms rely on), hence holds `2 * num_ids * num_instances` indices, and `batch[0::2]` and `batch[1::2]` list the
    same identities in the same order. Within an epoch every identity is visited equally often up to one round, and an
    identity's images are all used once before one is used again. An identity with fewer than `num_instances` images in
    a modality repeats them within a batch.

    The batches of an epoch are a pure function of `(seed, epoch)`; pass the sampler as `batch_sampler` and call
    `set_epoch` before each epoch. To resume inside an epoch, skip the batches already done: they cost no decoding.

    Args:
        labels: identity of every training image `[N]`.
        modality: 0 visible, 1 infrared `[N]`.
        num_ids: P, identities of a batch.
        num_instances: K, images of an identity and modality in a batch.
        num_batches: batches of an epoch; by default as many as take the images of the larger modality once.
        seed: non-negative integer.

    Raises:
        ValueError: shapes differ, an argument is out of range, fewer than `num_ids` identities, or an identity is
            missing in one modality (it is named).

    Example:
        >>> sampler = CrossModalSampler([0, 0, 1, 1], [0, 1, 0, 1], num_ids=2, num_instances=1)
        >>> sorted(next(iter(sampler)))
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        labels,
        modality,
        *,
        num_ids: int,
        num_instances: int,
        num_batches: int | None = None,
        seed: int = 0,
    ):
        labels, modality = _column("labels", labels), _column("modality", modality)
        if labels.shape != modality.shape:
            raise ValueError(f"modality: expected shape {labels.shape} as labels, got {modality.shape}")
        if not np.isin(modality, (0, 1)).all():
            raise ValueError(f"modality: expected 0 or 1, got {modality[~np.isin(modality, (0, 1))][0]}")
        for name, value, least in (
            ("num_ids", num_ids, 1),
            ("num_instances", num_instances, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value!r}")
        identities = np.unique(labels)
        if len(identities) < num_ids:
            raise ValueError(f"num_ids: expected at most {len(identities)}, the identities in labels, got {num_ids}")
        self._rows = []
        for identity in identities:
            rows = [np.flatnonzero((labels == identity) & (modality == m)) for m in (1, 0)]
            for name, found in zip(("infrared", "visible"), rows, strict=True):
                if not len(found):
                    raise ValueError(f"labels: identity {identity} has no {name} image")
            self._rows.append(rows)
        if num_batches is None:
            num_batches = max(1, int(max(np.sum(modality == 0), np.sum(modality == 1))) // (num_ids * num_instances))
        if num_batches < 1:
            raise ValueError(f"num_batches: expected at least 1, got {num_batches!r}")
        self.num_ids, self.num_instances, self.num_batches, self.seed = (
            num_ids,
            num_instances,
            num_batches,
            seed,
        )
        self.batch_size, self.drop_last = 2 * num_ids * num_instances, True  # what a sharding wrapper wants to know
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        queues = [[_Queue(rows, rng) for rows in pair] for pair in self._rows]
        order: list[int] = []
        for _ in range(self.num_batches):
            if len(order) < self.num_ids:  # the rest of a round is dropped: a batch never holds an identity twice
                order = rng.permutation(len(queues)).tolist()
            chosen, order = order[: self.num_ids], order[self.num_ids :]
            pairs = [[queue.take(self.num_instances) for queue in queues[identity]] for identity in chosen]
            yield np.array(pairs).transpose(0, 2, 1).reshape(-1).tolist()


class _Queue:
    """Draws without replacement, reshuffled when used up."""

    def __init__(self, rows: np.ndarray, rng: np.random.Generator):
        self._rows, self._rng, self._left = rows, rng, rows[:0]

    def take(self, count: int) -> np.ndarray:
        while len(self._left) < count:
            self._left = np.concatenate([self._left, self._rng.permutation(self._rows)])
        taken, self._left = self._left[:count], self._left[count:]
        return taken


def _column(name: str, values) -> np.ndarray:
    column = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    if column.ndim != 1 or not len(column) or column.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected a non-empty column of integers, got shape {column.shape}, {column.dtype}")
    return column
