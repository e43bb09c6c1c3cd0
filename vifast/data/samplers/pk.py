"""PxK batches that use all images of an identity before one comes again."""

from collections.abc import Iterator

import numpy as np

from vifast.data.samplers.identity import IdentitySampler


class CrossModalSampler(IdentitySampler):
    """PxK batches over both modalities: of `num_ids` identities `num_instances` visible and as many infrared images.

    Batches alternate infrared, visible, .. within an identity (see `IdentitySampler`). Within an epoch every identity
    is visited equally often up to one round, and an identity's images are all used once before one is used again. An
    identity with fewer than `num_instances` images in a modality repeats them within a batch.

    Args:
        labels: identity of every training image `[N]`.
        modality: 0 visible, 1 infrared `[N]`.
        num_ids: P, identities of a batch.
        num_instances: K, images of an identity and modality in a batch.
        num_batches: batches of an epoch; by default as many as take the images of the larger modality once.
        seed: non-negative integer.
        rank, world_size: the share of one of several processes in every batch.

    Raises:
        ValueError: shapes differ, an argument is out of range, fewer than `num_ids` identities, or an identity is
            missing in one modality (it is named).

    Example:
        >>> sampler = CrossModalSampler([0, 0, 1, 1], [0, 1, 0, 1], num_ids=2, num_instances=1)
        >>> sorted(next(iter(sampler)))
        [0, 1, 2, 3]
    """

    def _whole_epoch(self) -> int:
        return max(1, self._most() // (self.num_ids * self.num_instances))

    def _draw(self, epoch: int) -> Iterator[np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        queues = [[_Queue(rows, rng) for rows in pair] for pair in self._images]
        order: list[int] = []
        while True:
            if len(order) < self.num_ids:  # the rest of a round is dropped: a batch never holds an identity twice
                order = rng.permutation(len(queues)).tolist()
            chosen, order = order[: self.num_ids], order[self.num_ids :]
            yield np.array([[queue.take(self.num_instances) for queue in queues[identity]] for identity in chosen])


class _Queue:
    """Draws without replacement, reshuffled when used up."""

    def __init__(self, rows: np.ndarray, rng: np.random.Generator):
        self._rows, self._rng, self._left = rows, rng, rows[:0]

    def take(self, count: int) -> np.ndarray:
        while len(self._left) < count:
            self._left = np.concatenate([self._left, self._rng.permutation(self._rows)])
        taken, self._left = self._left[:count], self._left[count:]
        return taken
