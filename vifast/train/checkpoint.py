"""Checkpoints: one folder each, complete or absent, with the weights as safetensors.

``DIR/checkpoints/epoch-0012/`` holds ``weights.safetensors`` and ``state.pt`` (optimiser, gradient scaler,
position). The folder is written under a temporary name and renamed once it is whole, so a kill at any moment
leaves the previous checkpoint in place.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vifast.models import read_saved, read_tensors

WEIGHTS, STATE = "weights.safetensors", "state.pt"


def save(out: Path, epoch: int, model: nn.Module, state: dict[str, Any]) -> Path:
    """Writes the checkpoint after ``epoch`` finished epochs and removes the one before it."""
    root = out / "checkpoints"
    final, temporary = root / f"epoch-{epoch:04d}", root / f".epoch-{epoch:04d}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(tensors, temporary / WEIGHTS)
        torch.save(state, temporary / STATE)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for other in root.glob("epoch-*"):
        if other != final:
            shutil.rmtree(other)
    return final


def latest(out: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder, or None."""
    return max((out / "checkpoints").glob("epoch-*"), default=None)


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Copies the weights into ``model``; ValueError naming the file where it is damaged or does not fit."""
    path = checkpoint / WEIGHTS
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit this system ({' '.join(str(error).split())})") from error


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The training state; ValueError or FileNotFoundError naming the file if it is damaged or absent."""
    return read_saved(checkpoint / STATE)
