"""A run as its folder tells it, read without its model or its dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from vifast.train.log import read_metrics

CONFIG, RUN, RESULTS = "config.yaml", "run.json", "results.json"
_NEEDED = ("system", "dataset", "optimizer", "epochs", "seed")  # of a configuration, whichever version wrote it
_SHARE = "share_"
_NOT_PARTS = {"step", "epoch", "kind", "loss", "lr_factor", "images_per_second"}


@dataclass(frozen=True)
class Run:
    """What a run left so far: ``config`` as it was resolved, ``facts`` of ``run.json``, the records of its training
    steps and evaluations and of what the system observed, and ``results`` once it is finished."""

    folder: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    steps: list[dict]
    evaluations: list[dict]
    results: dict[str, Any] | None
    details: list[dict] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs that are finished as far as the records tell."""
        if self.results is not None:
            return self.config["epochs"]
        return max((record["epoch"] for record in (*self.steps, *self.evaluations)), default=0)

    @property
    def scores(self) -> dict[str, Any] | None:
        """Of the end, or of the newest evaluation; None before the first."""
        return self.results or (self.evaluations[-1] if self.evaluations else None)

    @property
    def speed(self) -> float | None:
        """Median of the images per second."""
        return median(record["images_per_second"] for record in self.steps) if self.steps else None

    def parts(self) -> list[str]:
        """Names of the parts of its loss."""
        names = dict.fromkeys(name for record in self.steps for name in record)
        return [name for name in names if name not in _NOT_PARTS and not name.startswith(_SHARE)]

    def shares(self) -> dict[str, list[float]]:
        """Shares of the parts of a step in its time, of every step."""
        names = dict.fromkeys(name for record in self.steps for name in record if name.startswith(_SHARE))
        return {name.removeprefix(_SHARE): [record.get(name, 0.0) for record in self.steps] for name in names}


def require_run(folder: Path) -> None:
    """
    Raises:
        FileNotFoundError: ``folder`` is not the folder of a run.
    """
    for name in (CONFIG, RUN):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: not a run's folder, it has no {name}")


def finished(folder: Path) -> bool:
    """Whether the run in ``folder`` went to its end, of which its results are the last file."""
    return (folder / RESULTS).is_file()


def read_results(folder: Path) -> dict[str, Any]:
    """The scores of a finished run; ValueError naming the file if it is damaged."""
    return _read(folder / RESULTS, json.loads)


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says; ValueError naming the file if it is damaged."""
    facts = _read(folder / RUN, json.loads)
    if "num_classes" not in facts:
        raise ValueError(f"{folder / RUN}: not the facts of a run, it has no num_classes")
    return facts


def read_run(folder: Path) -> Run:
    """The run in ``folder``, finished or not, of this version or another.

    Raises:
        FileNotFoundError: it is not the folder of a run.
        ValueError: one of its files is damaged.
    """
    require_run(folder)
    config = _read(folder / CONFIG, yaml.safe_load)
    for name in _NEEDED:
        if name not in config:
            raise ValueError(f"{folder / CONFIG}: not the configuration of a run, it has no {name}")
    results = read_results(folder) if finished(folder) else None
    records = {"train": [], "eval": [], "detail": []}
    for record in read_metrics(folder):
        records[record["kind"]].append(record)
    return Run(folder, config, read_facts(folder), records["train"], records["eval"], results, records["detail"])


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parse(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: damaged ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected names and values, got {type(found).__name__}")
    return found
