"""What a run is made from: where it lies, which may change, and sums of what it is, which may not."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vifast import systems
from vifast.data import Dataset
from vifast.systems.stage import FINAL
from vifast.train import checkpoint
from vifast.train.config import TrainConfig


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
