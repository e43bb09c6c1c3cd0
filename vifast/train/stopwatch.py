"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Time by part, summed until it is asked for; on a GPU by events, so that watching waits for nothing.

    Args:
        device: where the parts run.

    >>> watch = Stopwatch(torch.device("cpu"))
    >>> with watch("forward"):
    ...     pass
    >>> watch.shares()
    {'forward': 1.0}
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if not self._cuda:
            start = time.perf_counter()
            yield
            self._add(part, time.perf_counter() - start)
            return
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        stop.record()
        self._events.append((part, start, stop))

    def shares(self) -> dict[str, float]:
        """Shares of the parts in their sum since the last call, 0..1, in the order in which they came up.

        On a GPU only what has finished counts; the rest is of the next call.
        """
        while self._events and self._events[0][2].query():
            part, start, stop = self._events.pop(0)
            self._add(part, start.elapsed_time(stop) / 1e3)
        total = sum(self._seconds.values())
        shares = {part: seconds / total for part, seconds in self._seconds.items()} if total else {}
        self._seconds = {}
        return shares

    def _add(self, part: str, seconds: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds
