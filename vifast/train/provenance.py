"""What a result depends on besides its configuration: what it was made from, versions, platform, commit."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import vifast
from vifast import systems
from vifast.data import Dataset
from vifast.systems.stage import FINAL
from vifast.train import checkpoint
from vifast.train.config import TrainConfig

#: Distributions that vifast works with; those of the extras may be absent.
PACKAGES = (
    "torch",
    "numpy",
    "triton",
    "accelerate",
    "safetensors",
    "pydantic",
    "pyyaml",
    "pillow",
    "rich",
    "typer",
    "jinja2",
    "matplotlib",
    "tensorboard",
    "nvidia-dali-cuda130",
)


def places(config: TrainConfig) -> dict[str, Path]:
    """Where what a run is made from lies, by the keys that say so.

    >>> from vifast.train.config import load_config
    >>> places(load_config("ckda-clean", ["data=SYSU-MM01", "options.previous=runs/one"]))
    {'data': PosixPath('SYSU-MM01'), 'options.previous': PosixPath('runs/one')}
    """
    options = {f"options.{name}": getattr(config.options, name) for name in systems.get(config.system).starts}
    given = {"data": config.data, "teacher": config.teacher, **options}
    return {key: Path(place) for key, place in given.items() if place is not None}


def sources(config: TrainConfig, dataset: Dataset) -> dict[str, str]:
    """SHA-256 of what a run is made from, by the keys of `places`, as far as it is there.

    Of images their names, labels, cameras and modalities count, in their order; what is in them is not read.
    """
    found = {"data": _sum_of_images(dataset)}
    for key, place in places(config).items():
        files = [place] if place.is_file() else sorted((place / FINAL).glob("*.safetensors"))
        if key == "teacher":
            files = [checkpoint.find_weights(place, config.teacher_weights)]
        if key != "data" and files:
            found[key] = _sum_of_files(files)
    return found


def _sum_of_images(dataset: Dataset) -> str:
    total = hashlib.sha256()
    for part in (dataset.train, dataset.query, dataset.gallery):
        total.update("\n".join(path.name for path in part.paths).encode(errors="surrogateescape"))
        for column in (part.labels, part.cams, part.modality):
            total.update(column.tobytes())
    return total.hexdigest()


def _sum_of_files(files: list[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                total.update(chunk)
    return total.hexdigest()


def versions() -> dict[str, str | None]:
    """Version of Python, vifast and each of `PACKAGES`; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "vifast": vifast.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """Commit of the checkout that vifast runs from, ``-dirty`` where files differ; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
