"""The batches of IDKL, index for index."""

from collections.abc import Iterator

import numpy as np

from vifast import _checks
from vifast.data.samplers.identity import IdentitySampler

SHORT = ("error", "skip", "repeat")


class IdklSampler(IdentitySampler):
    """IDKL's batches: the same rows in the same order as the published code draws from the same seed.

    An identity's images are shuffled and paired, the larger modality cut down to the smaller one; identities are drawn
    until fewer than `num_ids` have `num_instances` pairs left. Batches alternate infrared, visible (see
    `IdentitySampler`).

    **Epochs.** One legacy NumPy generator runs through all epochs, as it does in the published code, where it is
    NumPy's global one. Epoch e is drawn after epochs 0 .. e-1, whatever was asked for before: it is a function of
    `(seed, epoch)` here too, and resuming needs nothing else. `state(epoch)` is the generator's state before an epoch.

    **Length.** How many batches an epoch has depends on its draws, so `len` runs them once and belongs to the epoch
    that is set. The published code counts infrared images instead, about half as many batches as it draws; how many
    it trains on depends on the version of its training library. Here it is always all of them.

    Args:
        labels: identity of every training image `[N]`.
        modality: 0 visible, 1 infrared `[N]`.
        num_ids: P, identities of a batch.
        num_instances: images of an identity and modality in a batch, half of the published K.
        short: what to do about an identity with fewer than `num_instances` images in just one modality, with which
            the published code stops in the middle of an epoch. `"error"` names it; `"skip"` leaves it out; `"repeat"`
            draws its `num_instances` images of that modality with replacement, as the published code does where both
            modalities have too few. Without any image in one modality it can only be skipped.
        num_batches: most batches of an epoch; by default all there are.
        seed: of the legacy generator, 0 to 2**32 - 1.
        state: start from this state of a legacy generator (`np.random.get_state()`) instead of `seed`.
        rank, world_size: the share of one of several processes in every batch.

    Raises:
        ValueError: shapes differ, an argument is out of range, fewer than `num_ids` identities, or an identity with
            too few images in one modality (it is named).

    Example:
        >>> sampler = IdklSampler([0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 1, 1], num_ids=2, num_instances=1, seed=1)
        >>> len(sampler), list(sampler)
        (1, [[6, 4, 2, 0]])
    """

    def __init__(self, labels, modality, *, short: str = "error", seed: int = 0, state: tuple | None = None, **options):
        _checks.one_of("short", short, SHORT)
        self._short = short
        super().__init__(labels, modality, seed=seed, **options)
        if seed >= 2**32:
            raise ValueError(f"seed: expected at most {2**32 - 1}, got {seed}")
        self._images.sort(key=lambda pair: pair[0][0])  # by their first infrared row
        generator = np.random.RandomState(seed)
        if state is not None:
            try:
                generator.set_state(state)
            except (TypeError, ValueError, LookupError) as error:
                raise ValueError(f"state: expected what np.random.get_state() returns ({error})") from error
        self._states = [generator.get_state()]  # before every epoch that was reached
        self._drawn: tuple[int, np.ndarray] | None = None

    def _usable(self, images: dict, num_instances: int) -> dict:
        usable = {}
        for identity, pair in images.items():
            infrared, visible = map(len, pair)
            short = self._short != "repeat" and _falls_short(infrared, visible, num_instances)
            if short and self._short == "error":
                raise ValueError(
                    f"labels: identity {identity} has {infrared} infrared and {visible} visible images, expected "
                    f"num_instances {num_instances} of each or fewer of both; see short='skip' and short='repeat'"
                )
            if not short:
                usable[identity] = pair
        return usable

    def _whole_epoch(self) -> None:
        return None

    def __len__(self) -> int:
        found = len(self._draw(self.epoch))
        return found if self.num_batches is None else min(found, self.num_batches)

    def state(self, epoch: int) -> tuple:
        """The legacy generator's state before `epoch`, for `np.random.set_state` or another sampler's `state`."""
        _checks.count("epoch", epoch, 0)
        while len(self._states) <= epoch:
            self._draw(len(self._states) - 1)
        return self._states[epoch]

    def _draw(self, epoch: int) -> np.ndarray:
        if self._drawn is None or self._drawn[0] != epoch:
            generator = np.random.RandomState()
            generator.set_state(self.state(epoch))
            batches = list(self._batches(generator))
            shape = (-1, self.num_ids, 2, self.num_instances)
            self._drawn = epoch, np.array(batches, dtype=np.int64).reshape(shape)
            if len(self._states) == epoch + 1:
                self._states.append(generator.get_state())
        return self._drawn[1]

    def _batches(self, rng: np.random.RandomState) -> Iterator[list[np.ndarray]]:
        """The draws of one epoch. Every call of the generator, and their order, is part of the result."""
        left = [self._groups(*pair, rng) for pair in self._images]
        waiting = list(range(len(left)))
        while len(waiting) >= self.num_ids:
            chosen = [waiting[i] for i in rng.choice(len(waiting), self.num_ids, replace=False)]
            yield [left[identity].pop() for identity in chosen]
            for identity in chosen:
                if not left[identity]:
                    waiting.remove(identity)

    def _groups(self, infrared: np.ndarray, visible: np.ndarray, rng: np.random.RandomState) -> list[np.ndarray]:
        """What one identity gives to an epoch, last first: rows `[2, num_instances]`."""
        count = self.num_instances
        if len(infrared) < count:
            infrared = rng.choice(infrared, count, replace=True)
        if len(visible) < count:
            visible = rng.choice(visible, count, replace=True)
        if len(infrared) > len(visible):
            infrared = rng.choice(infrared, len(visible), replace=False)
        elif len(visible) > len(infrared):
            visible = rng.choice(visible, len(infrared), replace=False)
        infrared, visible = infrared.copy(), visible.copy()
        rng.shuffle(infrared)
        rng.shuffle(visible)
        groups = np.stack([infrared, visible])[:, : len(visible) // count * count].reshape(2, -1, count)
        return list(groups.transpose(1, 0, 2)[::-1])


def _falls_short(infrared: int, visible: int, count: int) -> bool:
    """Whether the published code has no batch for so many images: too few in one modality, or none in one."""
    return (infrared < count) != (visible < count) or not infrared or not visible
