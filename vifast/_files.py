"""Files that are either complete or as they were before."""

import os
from pathlib import Path


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes beside the place and renames.

    Raises:
        OSError: the file cannot be written; the message has its path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """The same for text, in UTF-8."""
    write_bytes(path, text.encode())
