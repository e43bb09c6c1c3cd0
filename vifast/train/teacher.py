"""The teacher of a run: a finished run that is opened, or the configuration of one that is trained first."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vifast import systems
from vifast.systems import System
from vifast.train.build import build_system, load_run, num_classes
from vifast.train.config import ConfigError, DatasetConfig, TrainConfig, load_config
from vifast.train.record import CONFIG, RESULTS, finished, require_run

FOLDER = "teacher"  # in the run's own: of a teacher that is trained for it

#: What a teacher takes over from the run that it is trained for; of the dataset all but how its batches are made.
_CARRIED = ("data", "seed", "precision", "channels_last", "threads", "compile", "deterministic", "gather")
_CARRIED += ("steps_per_epoch",)
_BATCHES = {"num_ids", "num_instances", "sampler", "short", "augment"}


def needs_teacher(config: TrainConfig) -> bool:
    """Whether the system of a run has a teacher.

    Raises:
        ConfigError: it has none, but the configuration names one.
    """
    kind = systems.get(config.system).of(config.options)
    if config.teacher is not None and not kind.needs_teacher:
        raise ConfigError(f"teacher: expected none, {kind.__name__} learns from labels alone")
    return kind.needs_teacher


def teacher_config(config: TrainConfig) -> TrainConfig:
    """The configuration of the teacher that is trained for the run of ``config``: ``teacher_config`` over what is
    carried over from the run over the base that it names.

    Carried over are data, sizes of images, loader, seed, precision and what both systems' options inherit, which is
    the network.

    Raises:
        ConfigError: there is no ``teacher_config``, or it is not one.
    """
    given = dict(config.teacher_config or {})
    if "base" not in given:
        raise ConfigError("teacher: expected a finished run's folder, or teacher_config.base to train one, got none")
    base = given.pop("base")
    kind = systems.get(given.get("system", load_config(base).system)).Options
    dataset = {name: getattr(config.dataset, name) for name in DatasetConfig.model_fields if name not in _BATCHES}
    carried = {name: getattr(config, name) for name in _CARRIED} | {"dataset": dataset}
    shared = next(c for c in type(config.options).__mro__ if issubclass(kind, c))
    if dataclasses.is_dataclass(shared):
        carried["options"] = {field.name: getattr(config.options, field.name) for field in dataclasses.fields(shared)}
    try:
        return load_config(base, [*_overrides(carried), *_overrides(given)])
    except ConfigError as error:
        raise ConfigError("\n".join(f"teacher_config: {line}" for line in str(error).splitlines())) from error


def open_teacher(config: TrainConfig, folder: Path, classes: int) -> System:
    """The system that was trained in ``folder``, to teach the run of ``config`` on ``classes`` identities.

    Raises:
        ConfigError: it is no finished run, or one on other identities.
        ValueError: its weights cannot be used.
    """
    theirs = _config_of(folder).dataset
    if not finished(folder):
        raise ConfigError(f"teacher: {folder}: its run is not finished, it has no {RESULTS}")
    for name in ("name", "split") if theirs.name == "regdb" else ("name",):
        ours, found = getattr(config.dataset, name), getattr(theirs, name)
        if ours != found:
            raise ConfigError(f"teacher: {folder}: trained on dataset.{name} {found}, this run is on {ours}")
    if num_classes(folder) != classes:
        found = num_classes(folder)
        raise ConfigError(f"teacher: {folder}: trained on {found} identities, this run is on {classes}")
    return load_run(folder, config.teacher_weights, [f"channels_last={json.dumps(config.channels_last)}"])[0]


def untrained_teacher(config: TrainConfig, classes: int) -> System:
    """A system like the teacher of the run of ``config``, with weights of no use."""
    theirs = teacher_config(config) if config.teacher is None else _config_of(config.teacher)
    return build_system(theirs, classes, trained=True)


def _config_of(folder: Path) -> TrainConfig:
    try:
        require_run(folder)
    except FileNotFoundError as error:
        raise ConfigError(f"teacher: {error}") from error
    return load_config(folder / CONFIG)


def _overrides(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """``key=value`` of every value of nested mappings."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value, default=str)}"
