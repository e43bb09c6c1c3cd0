"""Batches decoded by NVIDIA DALI: on a GPU where there is one, else in threads of its own.

DALI gets paths in the caller's order and hands images over without a copy. On the CPU it only decodes, to Pillow's
bits, and `resize` follows, so a batch does not depend on who decoded it; on a GPU it resizes as well.
"""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from vifast.data.resize import resize
from vifast.data.sources import AHEAD, Files, Rows

INSTALL = 'pip install "vifast[dali]"'
_log = logging.getLogger("vifast.data")
_BATCH = 2048  # most images of a batch; the pipeline of 2048 is built as fast as that of 64


def why_missing() -> str | None:
    """None where DALI can be used, else why not."""
    try:
        import nvidia.dali.fn  # noqa: F401
    except ImportError as error:
        return f"DALI cannot be imported ({error}); {INSTALL}"
    return None


class DaliSource:
    """As :class:`~vifast.data.sources.PillowSource`, by DALI; `threads` is at least 1.

    A file that DALI cannot decode breaks its pipeline without being named. Its batch is then read by Pillow, which
    names it or does what `on_damage` says, and a new pipeline goes on after it.

    Images on a GPU lie in DALI's own memory and are bound to the stream that was current: DALI takes the memory back
    when the tensor is freed, in the order of that stream.
    """

    def __init__(self, files: Files, *, threads: int, device: torch.device):
        self._files, self._threads, self._device = files, threads, device
        self._paths = [np.frombuffer(os.fsencode(path), np.uint8) for path in files.samples.paths]
        self._idle: list[_Pipeline] = []

    def batches(self, wanted: Iterable[Rows]) -> Iterator[tuple[list[int], Tensor]]:
        pipeline = self._idle.pop() if self._idle else self._build()
        rest = iter(wanted)
        pipeline.begin(map(self._files.known, rest))
        try:
            while True:
                try:
                    decoded = pipeline.run()
                except _BrokenError as error:
                    asked, *others = pipeline.on_their_way
                    pipeline = self._build()
                    rows, images = self._files.read(asked)
                    if rows == asked:
                        _log.warning("a batch is decoded by Pillow, for DALI failed: %s", _reason(error))
                    yield rows, torch.from_numpy(images).to(self._device)
                    pipeline.begin(map(self._files.known, chain(others, rest)))
                    continue
                if decoded is None:
                    return
                yield decoded
        finally:
            with contextlib.suppress(_BrokenError):  # by a file that nobody waits for any more; it is given up
                pipeline.end()
                self._idle.append(pipeline)

    def _build(self) -> "_Pipeline":
        return _Pipeline(self._paths, self._files.size, self._files.resample, self._threads, self._device)


class _BrokenError(Exception):
    """A file on its way cannot be decoded, and the pipeline is of no use any more."""


def _reason(error: _BrokenError) -> str:
    """Of DALI's message, a page with a traceback, the line that says what happened."""
    lines = [line.strip() for line in str(error.__cause__).splitlines() if line.strip()]
    told = lines.index("encountered:") + 1 if "encountered:" in lines[:-1] else 0
    return lines[told] if lines else type(error.__cause__).__name__


def _resized(images, size: tuple[int, int], resample: str):
    from nvidia.dali import fn, types

    kernel = types.INTERP_LANCZOS3 if resample == "lanczos" else types.INTERP_LINEAR
    return fn.resize(images, resize_y=size[0], resize_x=size[1], interp_type=kernel, antialias=True)


class _Pipeline:
    """A DALI pipeline, and the rows of the batches that are in it."""

    def __init__(self, paths: list[np.ndarray], size: tuple[int, int], resample: str, threads: int, device):
        from nvidia.dali import Pipeline, fn, types

        self._paths, self._size, self._resample, self._device = paths, size, resample, device
        self.on_their_way: deque[list[int]] = deque()
        self.begin(iter(()))
        gpu = device.type == "cuda"
        self._pipeline = Pipeline(_BATCH, threads, device.index if gpu else None, prefetch_queue_depth=AHEAD)
        with self._pipeline:
            names = fn.external_source(source=self._next_paths, batch=True, dtype=types.UINT8, ndim=1)
            images = fn.decoders.image(
                fn.io.file.read(names),
                device="mixed" if gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,  # nor does Pillow
            )
            self._pipeline.set_outputs(_resized(images, size, resample) if gpu else images)
        self._pipeline.build()

    def begin(self, wanted: Iterator[list[int]]) -> None:
        self._wanted, self._error, self._ended = wanted, None, False

    def _next_paths(self) -> list[np.ndarray]:
        try:
            rows = next(self._wanted)
        except StopIteration:
            raise
        except Exception as error:  # the sampler's: not to be taken for one of DALI's
            self._error = error
            raise StopIteration from error
        self.on_their_way.append(rows)
        return [self._paths[row] for row in rows]

    def run(self) -> tuple[list[int], Tensor] | None:
        """The next batch, or None after the last. Raises _BrokenError, or what the sampler raised."""
        gpu = self._device.type == "cuda"
        try:
            (out,) = self._pipeline.run(*([torch.cuda.current_stream(self._device)] if gpu else []))
        except StopIteration:
            self._pipeline.reset()
            self._ended = True
            if self._error is not None:
                raise self._error from None
            return None
        except Exception as error:
            raise _BrokenError from error
        if gpu:
            return self.on_their_way.popleft(), torch.from_dlpack(out.as_tensor())
        images = resize([out[i] for i in range(len(out))], self._size, self._resample)
        return self.on_their_way.popleft(), torch.from_numpy(images)

    def end(self) -> None:
        """Let what is on its way come out, so that the pipeline can begin anew."""
        self._wanted = iter(())
        while not self._ended and self.run() is not None:
            pass
