"""Independent PxK batches whose images are drawn with replacement."""

from collections.abc import Iterator

import numpy as np

from vifast import _checks
from vifast.data.samplers.identity import IdentitySampler

LAYOUTS = ("halves", "alternating")


class ReplacementSampler(IdentitySampler):
    """`num_ids` distinct identities a batch, and of each `num_instances` images of a modality, with replacement.

    Batches are independent of each other: nothing says that an epoch shows every image or identity. It has
    `floor(max(visible, infrared) / (num_ids * num_instances)) + 1` of them.

    Args:
        labels: identity of every training image `[N]`.
        modality: 0 visible, 1 infrared `[N]`.
        num_ids: P, identities of a batch.
        num_instances: K, images of an identity and modality in a batch.
        num_batches: batches of an epoch, instead of the number above.
        layout: `"halves"`, all visible and then all infrared images, or `"alternating"`: see `IdentitySampler`.
        seed: non-negative integer.
        rank, world_size: the share of one of several processes in every batch.

    Raises:
        ValueError: shapes differ, an argument is out of range, fewer than `num_ids` identities, or an identity is
            missing in one modality (it is named).

    Source: the batches of DAKD and of CKDA. Their draws come from another generator.

    Example:
        >>> sampler = ReplacementSampler([7, 7, 9, 9], [0, 1, 0, 1], num_ids=2, num_instances=1)
        >>> len(sampler), sorted(next(iter(sampler))[:2])
        (2, [0, 2])
    """

    def __init__(self, labels, modality, *, layout: str = "halves", **options):
        _checks.one_of("layout", layout, LAYOUTS)
        self.layout = layout
        super().__init__(labels, modality, **options)
        groups = [rows for pair in self._images for rows in pair]
        self._rows = np.concatenate(groups)
        self._counts = np.array([len(rows) for rows in groups]).reshape(-1, 2)  # infrared, visible of each identity
        self._first = np.cumsum([0, *self._counts.reshape(-1)[:-1]]).reshape(-1, 2)

    def _whole_epoch(self) -> int:
        return self._most() // (self.num_ids * self.num_instances) + 1

    def _draw(self, epoch: int) -> Iterator[np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        while True:
            chosen = rng.choice(len(self._counts), self.num_ids, replace=False)
            counts, first = self._counts[chosen, :, None], self._first[chosen, :, None]
            yield self._rows[first + rng.integers(counts, size=(self.num_ids, 2, self.num_instances))]
