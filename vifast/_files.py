"""Files that are either complete or as they were before."""

import os
from pathlib import Path


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes beside the place and renames.

    Raises:
        OSError: the file cannot be written; the message has its path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
