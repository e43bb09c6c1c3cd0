"""Files that are either complete or as they were before."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def require_place(name: str, path: str | os.PathLike) -> None:
    """Before work whose result goes to ``path``, the argument ``name``.

    Raises:
        OSError: no file can be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{name}: expected a file to write, got the folder {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{name}: expected a file in a folder that exists, got {path}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}: expected a file in a folder that can be written to, got {path}")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A place beside ``path`` to write to; it takes the name when the block ends, and vanishes if that fails.

    Raises:
        OSError: the file cannot be written; the message has its path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file by :func:`replacing` it."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """The same for text, in UTF-8."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Holds the only right to replace ``path``; who asks meanwhile waits. Clears away what killed processes left."""
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{path.name}.*.part"):
            os.unlink(left)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def durable(path: Path) -> Iterator[int]:
    """A descriptor (under :func:`writing`) of a file that reaches the disk and only then takes the name ``path``.

    Until that one rename the old file is what is there; it stays where the block or the disk fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield file
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
