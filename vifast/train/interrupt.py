"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopAsked:
    """True once somebody asked to stop."""

    def __init__(self):
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        for name in (signal.SIGINT, signal.SIGTERM):  # a second time does not wait
            signal.signal(name, signal.SIG_DFL if name == signal.SIGTERM else signal.default_int_handler)


@contextmanager
def stop_asked() -> Iterator[StopAsked]:
    """Inside, the first Ctrl-C or SIGTERM is only remembered; a second one ends the program as ever.

    Signals reach the main thread alone: in another one nothing is changed.

    >>> with stop_asked() as stop:
    ...     signal.raise_signal(signal.SIGINT)
    ...     bool(stop)
    True
    """
    stop = StopAsked()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
