"""Checkpoints: one folder each, complete or absent, with the weights as safetensors.

``DIR/checkpoints/epoch-0012/`` is the state after 12 epochs, ``epoch-0012-step-00345/`` after 345 more steps, with
``weights.safetensors`` and ``state.pt`` (optimiser, gradient scaler, position). ``best.safetensors`` beside them holds
the weights that scored best so far, and their score. ``DIR/final/`` exists only where a system has a last word on its
weights after training (`System.finish`): they are the ``"last"`` ones then, with ``knowledge.safetensors``, the tensors
it leaves to a next stage. Each is written under a temporary name and renamed once it is whole, so a kill at any moment
leaves the previous one in place.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vifast import _checks
from vifast._files import replacing
from vifast.models import read_saved, read_tensors
from vifast.systems.stage import FINAL, KNOWLEDGE, WEIGHTS

STATE, BEST = "state.pt", "best.safetensors"


def save(out: Path, epoch: int, model: nn.Module, state: dict[str, Any], *, step: int = 0) -> Path:
    """Writes the checkpoint after ``epoch`` finished epochs and ``step`` steps, and removes the one before it.

    Raises:
        OSError: it cannot be written, for example on a full disk; the one before it is still there.
    """
    name = f"epoch-{epoch:04d}" + (f"-step-{step:05d}" if step else "")
    final = out / "checkpoints" / name
    if not final.exists():  # a run comes by a position with the same bits each time
        with _whole(final) as folder:
            _save_tensors(model.state_dict(), folder / WEIGHTS)
            torch.save(state, folder / STATE)
    for other in (out / "checkpoints").glob("epoch-*"):
        if other != final:
            shutil.rmtree(other)
    return final


def save_best(out: Path, model: nn.Module, score: Mapping[str, Any]) -> None:
    """Writes ``best.safetensors``, in the place of the one before."""
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    with replacing(out / "checkpoints" / BEST) as path:
        _save_tensors(model.state_dict(), path, {"score": json.dumps(dict(score))})


def save_final(out: Path, model: nn.Module, knowledge: Mapping[str, Tensor]) -> None:
    """Writes ``final/``: the weights, and ``knowledge`` if there is any. What is there already is the same."""
    if not (out / FINAL).exists():
        with _whole(out / FINAL) as folder:
            _save_tensors(model.state_dict(), folder / WEIGHTS)
            if knowledge:
                _save_tensors(knowledge, folder / KNOWLEDGE)


def best_score(out: Path) -> dict[str, Any] | None:
    """What `save_best` was told last, or None."""
    path = out / "checkpoints" / BEST
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["score"])


def latest(out: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder, or None."""
    return max((out / "checkpoints").glob("epoch-*"), default=None)


def find_weights(out: Path, which: str = "last") -> Path:
    """The file of the ``"last"`` or the ``"best"`` weights of a run.

    Raises:
        ValueError: ``which`` is neither.
        FileNotFoundError: there is none.
    """
    _checks.one_of("checkpoint", which, ("last", "best"))
    if which == "best":
        path = out / "checkpoints" / BEST
        if not path.is_file():
            raise FileNotFoundError(f"{out}: no best checkpoint; the run has not been evaluated yet")
        return path
    folder = out / FINAL if (out / FINAL).is_dir() else latest(out)
    if folder is None:
        raise FileNotFoundError(f"{out}: no checkpoint yet")
    return folder / WEIGHTS


def load_weights(path: Path, model: nn.Module) -> None:
    """Copies a file's weights into ``model``; ValueError naming the file where it is damaged or does not fit."""
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit this system ({' '.join(str(error).split())})") from error


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The training state; ValueError or FileNotFoundError naming the file if it is damaged or absent."""
    return read_saved(checkpoint / STATE)


def require_space(out: Path, needed: int) -> None:
    """Refuses to start a run whose checkpoints would not fit.

    Raises:
        OSError: fewer than ``needed`` bytes are free where ``out`` is or will be.
    """
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        words = f"{out}: its checkpoints need {needed / 2**20:,.0f} MiB, the disk has {free / 2**20:,.0f} MiB left"
        raise OSError(errno.ENOSPC, words)


def _save_tensors(named: Mapping[str, Tensor], path: Path, facts: dict[str, str] | None = None) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in named.items()}
    try:
        save_file(tensors, path, facts)
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise OSError(errno.EIO, f"{path}: {error}") from error


@contextmanager
def _whole(final: Path) -> Iterator[Path]:
    """A folder to write to; it becomes ``final`` when the block ends, and vanishes if that fails."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
