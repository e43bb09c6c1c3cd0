"""How far a long call is: whoever wants to know wraps its steps, see :func:`vifast.use_progress`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar

_wrap: ContextVar[Callable[[Sized, str], Iterable] | None] = ContextVar("wrap", default=None)


def steps(work: Sized, name: str) -> Iterable:
    """``work``, an iterable of known length, as the caller of this call wraps it."""
    wrap = _wrap.get()
    return work if wrap is None else wrap(work, name)


@contextmanager
def wrapped(wrap: Callable[[Sized, str], Iterable]) -> Iterator[None]:
    token = _wrap.set(wrap)
    try:
        yield
    finally:
        _wrap.reset(token)
