"""Configuration of a lifelong run: the datasets in their order, and how each of them is trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from vifast.data.layouts import READERS
from vifast.train.config import ConfigError, Section, TrainConfig, build_config, explain, merged, nearest, read_config

JOINT = "+"  # between the datasets of a stage that is trained on all of them at once
_OWN: dict[str, Any] = {"order": (), "data": {}, "stages": {}}


class LifelongConfig(Section):
    """Everything that decides a lifelong run.

    ``order`` names the stages: a dataset each, or several with ``+`` between them, which are trained on at once, with
    the last one's configuration. ``data`` are their root folders, ``datasets`` the resolved configuration of a run on
    each. In a file the keys of a single run stand for all, and what is another for a dataset under ``stages``.
    """

    order: tuple[str, ...]
    data: dict[str, Path] = Field(default_factory=dict)
    datasets: dict[str, TrainConfig]

    def names(self, number: int) -> list[str]:
        """The datasets of stage ``number``, from 0."""
        return self.order[number].split(JOINT)

    def root(self, name: str) -> Path:
        """The folder of a dataset; ConfigError where none is given."""
        if name not in self.data:
            raise ConfigError(
                f"data.{name}: expected the dataset's root folder, for example data.{name}=/path/to/{name}"
            )
        return self.data[name]

    def stage(self, number: int, previous: Path | None) -> TrainConfig:
        """The run of a stage, which goes on from the one in ``previous``."""
        config = self.run(self.names(number)[-1])
        if previous is None:
            return config
        return config.model_copy(update={"options": dataclasses.replace(config.options, previous=str(previous))})

    def run(self, name: str) -> TrainConfig:
        """A run on one dataset by itself."""
        return self.datasets[name].model_copy(update={"data": self.root(name)})


def stage_folders(out: Path, order: Sequence[str]) -> list[Path]:
    """Where the runs of a lifelong run in the folder ``out`` are.

    >>> [str(folder) for folder in stage_folders(Path("out"), ["regdb", "sysu+llcm"])]
    ['out/1-regdb', 'out/2-sysu+llcm']
    """
    return [out / f"{number}-{name}" for number, name in enumerate(order, start=1)]


def is_lifelong(data: Mapping[str, Any]) -> bool:
    """Whether a mapping of `read_config` is that of a lifelong run."""
    return "order" in data


def load_lifelong(source: str | Path, overrides: Sequence[str] = ()) -> LifelongConfig:
    """As `vifast.train.config.load_config`.

    >>> config = load_lifelong("ckda", ["data.sysu=a", "data.regdb=b", "order=[sysu, regdb]", "stages.sysu.epochs=3"])
    >>> config.datasets["sysu"].epochs, config.datasets["regdb"].epochs
    (3, 50)
    """
    return build_lifelong(read_config(source, overrides))


def build_lifelong(data: Mapping[str, Any]) -> LifelongConfig:
    """The validated configuration of a plain mapping.

    Raises:
        ConfigError: an order that is none, an unknown dataset or key (the nearest known one is named), a value of the
            wrong type or range; one problem a line.
    """
    order, folders, stages = (data.get(name) or empty for name, empty in _OWN.items())
    problems = [*_order_problems(order), *_name_problems("data", folders), *_name_problems("stages", stages)]
    if problems:
        raise ConfigError("\n".join(problems))
    common = {key: value for key, value in data.items() if key not in _OWN}
    named = {*stages, *(name for stage in order for name in stage.split(JOINT))}
    build_config(common)  # whose problems are so told once, by their own names
    datasets = {name: _of_dataset(name, common, stages.get(name) or {}) for name in READERS if name in named}
    for config in datasets.values():
        if len(order) > 1 and not hasattr(config.options, "previous"):
            raise ConfigError(f"system: {config.system} cannot go on from another stage, it has no options.previous")
    try:
        return LifelongConfig(order=tuple(order), data=folders, datasets=datasets)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(item) for item in error.errors())) from error


def dump_lifelong(config: LifelongConfig) -> str:
    """The resolved configuration as YAML that `load_lifelong` reads back to an equal one."""
    plain = config.model_dump(mode="json")
    stages = {name: {k: v for k, v in run.items() if k != "data"} for name, run in plain.pop("datasets").items()}
    return yaml.safe_dump({**plain, "stages": stages}, sort_keys=False)


def _of_dataset(name: str, common: Mapping[str, Any], own: Mapping[str, Any]) -> TrainConfig:
    data = merged(common, own)
    if isinstance(data.get("dataset", {}), Mapping):  # else its problem is told
        data["dataset"] = {**data.get("dataset", {}), "name": name}
    try:
        return build_config(data)
    except ConfigError as error:
        raise ConfigError("\n".join(f"stages.{name}.{line}" for line in str(error).splitlines())) from error


def _order_problems(order: Any) -> Iterator[str]:
    if not isinstance(order, (list, tuple)) or not order or not all(isinstance(stage, str) for stage in order):
        yield f"order: expected datasets, for example [regdb, sysu], got {order!r}"
        return
    names = [name for stage in order for name in stage.split(JOINT)]
    for name in dict.fromkeys(names):
        if name not in READERS:
            yield f"order: no dataset {name!r}{nearest(name, READERS)}"
        elif names.count(name) > 1:
            yield f"order: expected every dataset once, got {name} {names.count(name)} times"


def _name_problems(key: str, given: Any) -> Iterator[str]:
    if not isinstance(given, Mapping):
        example = "data.sysu=/path/to/SYSU-MM01" if key == "data" else "stages.sysu.epochs=20"
        yield f"{key}: expected a value for each dataset, for example {example}, got {given!r}"
        return
    for name, value in given.items():
        if name not in READERS:
            yield f"{key}.{name}: unknown key{nearest(str(name), READERS)}"
        elif key == "stages" and not isinstance(value, Mapping):
            yield f"{key}.{name}: expected the keys of a run, got {value!r}"
