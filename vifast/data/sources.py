"""Where the pixels of a batch come from: files decoded in threads, or memory that holds them decoded.

A source has one method, `batches(wanted)`: for every list of rows that `wanted` yields, in this order, the rows and
their images `[B, H, W, 3]` uint8. The rows that come back differ from those asked for where a file is damaged.
`vifast.data.dali` has a third source.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from vifast import _checks
from vifast.data.cache import ImageCache
from vifast.data.damage import ON_DAMAGE
from vifast.data.images import read_image
from vifast.data.records import MODALITIES, Samples

AHEAD = 2  # batches that are being decoded while the caller works on one
_log = logging.getLogger("vifast.data")

Rows = Sequence[int]


class Files:
    """Reads samples by row, with a choice of what to do about those that cannot be decoded.

    Args:
        samples: whose paths.
        size: (height, width) of the images.
        resample: `"bilinear"` or `"lanczos"`.
        on_damage: `"error"` raises; `"skip"` logs it (logger `vifast.data`) and takes the next image of the same
            identity and modality in its place, the same one in every epoch.
    """

    def __init__(self, samples: Samples, size: tuple[int, int], resample: str, on_damage: str):
        _checks.one_of("on_damage", on_damage, ON_DAMAGE)
        self.samples, self.size, self.resample, self.on_damage = samples, size, resample, on_damage
        self._in_place_of: dict[int, int] = {}

    def known(self, rows: Rows) -> list[int]:
        """The rows, damaged ones that were met before replaced."""
        return [self._in_place_of.get(row, row) for row in map(int, rows)]

    def read(self, rows: Rows) -> tuple[list[int], np.ndarray]:
        """The rows that were read, and their images `[B, H, W, 3]`.

        Raises:
            ValueError, FileNotFoundError: as `read_image`, under `on_damage="error"` or where no image is left.
        """
        images = np.empty((len(rows), *self.size, 3), np.uint8)
        return self.fill(rows, images), images

    def fill(self, rows: Rows, images: np.ndarray) -> list[int]:
        """The same into given memory."""
        return [self._read_one(row, image) for row, image in zip(self.known(rows), images, strict=True)]

    def _read_one(self, row: int, image: np.ndarray) -> int:
        errors = []
        for candidate in self._candidates(row):
            try:
                image[:] = read_image(self.samples.paths[candidate], self.size, self.resample)
            except (ValueError, FileNotFoundError) as error:
                if self.on_damage == "error":
                    raise
                errors.append(error)
                continue
            if candidate != row:
                self._in_place_of[row] = candidate
                _log.warning("%s; in its place: %s", errors[0], self.samples.paths[candidate])
            return candidate
        label, modality = self.samples.labels[row], MODALITIES[self.samples.modality[row]]
        raise ValueError(f"{errors[0]}; label {label} has no other {modality} image that can be decoded")

    def _candidates(self, row: int) -> Iterator[int]:
        yield row
        same = (self.samples.labels == self.samples.labels[row]) & (self.samples.modality == self.samples.modality[row])
        others = np.flatnonzero(same)
        yield from np.roll(others, -int(np.searchsorted(others, row)))[1:].tolist()


class PillowSource:
    """Decodes in `threads` threads, :data:`AHEAD` batches ahead; in the caller where `threads` is 0.

    Threads and not processes: Pillow and `resize` release the interpreter while they work, and no batch is copied from
    one process to another. On two cores both are as fast (`pillow_resize` and `processes` in docs/data.md).
    """

    def __init__(self, files: Files, *, threads: int, pinned: bool):
        self._files, self._threads, self._pinned = files, threads, pinned
        self._pool = ThreadPoolExecutor(threads, "vifast-decode") if threads else None

    def batches(self, wanted: Iterable[Rows]) -> Iterator[tuple[list[int], Tensor]]:
        ahead: deque[tuple[list[Future], Tensor]] = deque()
        try:
            for rows in wanted:
                ahead.append(self._start(rows))
                if len(ahead) > (AHEAD if self._pool else 0):
                    yield self._finish(*ahead.popleft())
            while ahead:
                yield self._finish(*ahead.popleft())
        finally:
            for parts, _ in ahead:
                for part in parts:
                    part.cancel()

    def _start(self, rows: Rows) -> tuple[list[Future], Tensor]:
        images = torch.empty((len(rows), *self._files.size, 3), dtype=torch.uint8, pin_memory=self._pinned)
        if self._pool is None:
            done: Future = Future()
            done.set_result(self._files.fill(rows, images.numpy()))
            return [done], images
        step = -(-len(rows) // (4 * self._threads))  # a few parts for each thread: one may get the large images
        parts = [slice(start, start + step) for start in range(0, len(rows), max(step, 1))]
        return [self._pool.submit(self._files.fill, rows[part], images[part].numpy()) for part in parts], images

    def _finish(self, parts: list[Future], images: Tensor) -> tuple[list[int], Tensor]:
        return [row for part in parts for row in part.result()], images


class MemorySource:
    """Rows of a cache, which is told of a batch while the caller works on the one before."""

    def __init__(self, cache: ImageCache, *, pinned: bool):
        self._cache, self._pinned = cache, pinned

    def batches(self, wanted: Iterable[Rows]) -> Iterator[tuple[list[int], Tensor]]:
        before = None
        for rows in wanted:
            self._cache.expect(rows)
            if before is not None:
                yield self._read(before)
            before = rows
        if before is not None:
            yield self._read(before)

    def _read(self, rows: Rows) -> tuple[list[int], Tensor]:
        images = torch.empty((len(rows), *self._cache.size, 3), dtype=torch.uint8, pin_memory=self._pinned)
        self._cache.read(rows, out=images.numpy())
        return [int(row) for row in rows], images
