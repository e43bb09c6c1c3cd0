"""What a finished run leaves to a next stage: the files of its ``final/`` folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from vifast.models import read_tensors

FINAL, WEIGHTS, KNOWLEDGE = "final", "weights.safetensors", "knowledge.safetensors"

#: The tensors of `WEIGHTS` or `KNOWLEDGE`, by that name.
Left = Callable[[str], Mapping[str, Tensor]]


def read_final(run: str | Path, name: str) -> dict[str, Tensor]:
    """The tensors of `WEIGHTS` or `KNOWLEDGE` of a finished run.

    Raises:
        FileNotFoundError: there is no such file, or no such run.
        ValueError: it is damaged.
    """
    path = Path(run) / FINAL / name
    if not path.is_file():
        raise FileNotFoundError(f"previous: expected the folder of a finished stage, but there is no {path}")
    return read_tensors(path)
