"""Configuration of a run: frozen, validated, read from YAML; a misspelt key is an error, never ignored."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from vifast import systems
from vifast.data import Augment
from vifast.retrieval.protocols import VARIANTS


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says where and why, one problem a line."""


class Section(BaseModel):
    """A frozen part of a configuration without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _named_cache(value: Any) -> Any:
    """True and False are how files of before say ``memory`` and ``none``."""
    return {True: "memory", False: "none"}[value] if isinstance(value, bool) else value


class DatasetConfig(Section):
    """Which dataset and protocol, and how images become batches.

    ``mode`` and ``shots`` are SYSU-MM01's, ``draw`` its and LLCM's, ``split`` RegDB's, ``direction`` all others',
    ``frames``, ``min_frames`` and ``level`` HITSZ-VCM's; None takes the reader's own default: see the readers.
    ``protocol`` is a variant to score by, see `vifast.retrieval.protocols`; ``swapped_flags`` shows test images as of
    the other modality (CKDA's release on LLCM). Of the training labels those below ``train_ids`` take part; the
    ``untrained`` others are left out, or shown to systems that make ``prototypes``.

    A batch has ``num_ids`` identities with ``num_instances`` images in each modality, over all processes of the run.
    ``sampler`` chooses them, see `vifast.data.samplers`, also for ``short``, which is ``idkl``'s. ``loader`` decodes
    with ``workers`` threads and resizes by ``resample``, see `vifast.data.make_loader`. ``cache`` keeps decoded images:
    those of training in ``memory``, or all on ``disk`` for this run and others, in ``cache_folder``, by default
    ``.vifast-cache`` in the dataset's folder. ``on_damage`` stops at what is wrong on disk, or logs it and leaves it
    out; with ``decode`` that includes images that do not decode to their end (about a millisecond an image, before
    training).
    """

    name: Literal["sysu", "regdb", "llcm", "vcm"] = "sysu"
    mode: Literal["all", "indoor"] = "all"
    shots: Literal[1, 10] = 1
    draw: Literal["published", "agw", "random", "whole"] | None = None
    split: int = Field(1, ge=1, le=10)
    direction: Literal["v2i", "i2v"] | None = None
    frames: int | None = Field(None, ge=1)
    min_frames: int = Field(1, ge=1)
    level: Literal["tracklet", "image"] = "tracklet"
    protocol: str | None = None
    swapped_flags: bool = False
    train_ids: int | None = Field(None, ge=2)
    untrained: Literal["drop", "prototypes"] = "drop"
    on_damage: Literal["error", "skip"] = "error"
    decode: bool = False
    height: int = Field(288, ge=16)
    width: int = Field(144, ge=8)
    num_ids: int = Field(8, ge=2)
    num_instances: int = Field(4, ge=1)
    sampler: Literal["pk", "idkl", "with_replacement"] = "pk"
    short: Literal["error", "skip", "repeat"] = "error"
    augment: Augment = Augment()
    loader: Literal["auto", "dali", "pillow"] = "auto"
    resample: Literal["bilinear", "lanczos"] = "bilinear"
    workers: int | None = Field(None, ge=0)
    cache: Annotated[Literal["none", "memory", "disk"], BeforeValidator(_named_cache)] = "none"
    cache_folder: Path | None = None

    @field_validator("protocol")
    @classmethod
    def _of_dataset(cls, protocol: str | None, info: ValidationInfo) -> str | None:
        known = VARIANTS.get(info.data.get("name"), ())
        if protocol is not None and protocol not in known:
            raise ValueError(f"expected {' or '.join(known) or 'none'} for {info.data.get('name')}")
        return protocol


class OptimizerConfig(Section):
    """Optimiser; ``lr_scale`` multiplies the rate of the system's parameter groups by name, ``fused`` updates all
    parameters in one pass."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    lr_scale: dict[str, float] = Field(default_factory=dict)
    clip_norm: float | None = Field(None, gt=0)
    fused: bool = True


class ScheduleConfig(Section):
    """Learning rate over time, see `vifast.train.schedule`; where its factor is 0, ``floor`` is left of every rate."""

    name: Literal["steps", "cosine", "epoch_cosine"] = "steps"
    warmup_epochs: float = Field(0, ge=0)
    milestones: tuple[int, ...] = ()
    gamma: float = Field(0.1, gt=0, le=1)
    floor: float = Field(0, ge=0)


class TrainConfig(Section):
    """Everything that decides a run. ``data`` is the dataset's root folder, ``options`` the system's own.

    A step takes ``accumulate`` batches. Of several processes each compares the rows of its own batch, or with
    ``gather: all`` those of everybody. ``compile`` gives the backbone to ``torch.compile``, ``deterministic`` refuses
    operations that are not. Checkpoints are made after every epoch, and every ``checkpoint_every`` steps; the best is
    the one whose evaluation is highest in ``best_by``. Every ``detail_every`` steps more is recorded, of systems that
    have more to tell.

    A system that needs a teacher gets the ``teacher_weights`` of the run in the folder ``teacher``. Without one it is
    trained first, by ``teacher_config``: a ``base`` and changes of it, see `vifast.train.teacher`.
    """

    system: str
    options: Any
    teacher: Path | None = None
    teacher_weights: Literal["last", "best"] = "best"
    teacher_config: dict[str, Any] | None = None
    data: Path | None = None
    dataset: DatasetConfig = DatasetConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    epochs: int = Field(81, ge=1)
    steps_per_epoch: int | None = Field(None, ge=1, description="None: as many as the data give")
    seed: int = Field(0, ge=0, lt=2**32)
    precision: Literal["no", "fp16", "bf16"] = "no"
    channels_last: bool = True
    threads: int | None = Field(None, ge=1, description="of torch on the CPU; None: as many as it likes")
    accumulate: int = Field(1, ge=1, description="batches of an optimiser step")
    gather: Literal["rank", "all"] = "rank"
    compile: bool = False
    deterministic: bool = False
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: only after epochs")
    best_by: Literal["rank1", "mean_ap", "mean_inp"] = "mean_ap"
    detail_every: int = Field(50, ge=0, description="steps; 0: never")
    evaluate_every: int = Field(10, ge=0, description="epochs between evaluations; 0: only after the last")


def presets() -> list[str]:
    """Names of the configurations that come with the package."""
    files = (resources.files("vifast.train") / "configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A configuration from a preset's name or a YAML file, with ``key=value`` overrides; see `read_config`.

    Raises:
        ConfigError: no such preset or file, YAML that does not parse, an unknown key (the nearest known
            one is named), a value of the wrong type or range.

    >>> load_config("agw-sysu", ["epochs=2", "optimizer.lr=0.05"]).optimizer.lr
    0.05
    """
    return build_config(read_config(source, overrides))


def read_config(source: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a preset or a YAML file says, with ``key=value`` overrides, as a plain mapping that nobody has validated.

    ``base: NAME`` in a file starts from that preset. ``variants`` are changes of the file that take effect where
    ``options.variant`` has their name. Override keys are dotted paths (``optimizer.lr=0.05``), values are YAML.

    Raises:
        ConfigError: no such preset or file, or YAML that does not parse.
    """
    data = _read(source)
    variants = data.pop("variants", {})
    options = _overridden(copy.deepcopy(data), overrides).get("options")
    variant = options.get("variant") if isinstance(options, dict) else None
    return _overridden(merged(data, variants.get(str(variant), {})), overrides)


def _overridden(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{override!r}: expected KEY=VALUE, for example optimizer.lr=0.05")
        _assign(data, key.split("."), _parse(value, override))
    return data


def build_config(data: Mapping[str, Any]) -> TrainConfig:
    """The validated configuration of a plain mapping, in which ``preset: NAME`` in ``dataset.augment`` starts from that
    augmentation; see `load_config`."""
    try:
        system_options = systems.get(data.get("system", "agw")).Options
    except ValueError as error:
        raise ConfigError(str(error)) from error
    data = _expanded({"system": "agw", "options": {}, **data})
    unknown = list(_unknown_keys(data, TrainConfig, system_options))
    if unknown:
        raise ConfigError("\n".join(unknown))
    try:
        options = TypeAdapter(system_options).validate_python(data["options"])
        return TrainConfig.model_validate({**data, "options": options})
    except ValidationError as error:
        section = None if error.title == TrainConfig.__name__ else "options"
        raise ConfigError("\n".join(explain(item, section) for item in error.errors())) from error


def dump_config(config: TrainConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted keys, as overrides name them.

    >>> flatten({"optimizer": {"lr": 0.1}, "seed": 0})
    {'optimizer.lr': 0.1, 'seed': 0}
    """
    flat = {}
    for key, value in data.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _expanded(data: dict[str, Any]) -> dict[str, Any]:
    """``dataset.augment.preset`` replaced by that preset's values, under those that are given beside it."""
    dataset = data.get("dataset")
    augment = dataset.get("augment") if isinstance(dataset, Mapping) else None
    if not isinstance(augment, Mapping) or "preset" not in augment:
        return data
    given = dict(augment)
    name = given.pop("preset")
    if name not in Augment.PRESETS:
        raise ConfigError(f"dataset.augment.preset: no {name!r}{nearest(str(name), Augment.PRESETS)}")
    values = merged(dataclasses.asdict(Augment.preset(name)), given)
    return {**data, "dataset": {**dataset, "augment": values}}


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if str(source) in presets():
        text = (resources.files("vifast.train") / "configs" / f"{source}.yaml").read_text()
    elif path.is_file():
        text = path.read_text()
    else:
        raise ConfigError(f"{source}: no such file, and not a preset{nearest(str(source), presets())}")
    data = _parse(text, str(source))
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected a mapping of keys to values, got {type(data).__name__}")
    base = data.pop("base", None)
    return data if base is None else merged(_read(base), data)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans, true and false: ``precision=no`` and ``graph: off`` are words."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, words) for tag, words in rules if tag != "tag:yaml.org,2002:bool"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error


def merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` under ``top``, section by section."""
    both = dict(base)
    for key, value in top.items():
        sections = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if sections else value
    return both


def _assign(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{'.'.join(keys)}: {key} is a value, not a section")
    data[keys[-1]] = value


def _unknown_keys(data: Mapping[str, Any], section: type, options: type = object) -> Iterator[str]:
    """One message for each key that ``section`` (a model or a dataclass) does not have, at any depth."""
    if dataclasses.is_dataclass(section):
        known = {field.name: field.type for field in dataclasses.fields(section)}
    else:
        known = {name: field.annotation for name, field in section.model_fields.items()}
    for key, value in data.items():
        if key not in known:
            yield f"{key}: unknown key{nearest(key, known)}"
        elif isinstance(value, Mapping):
            inner = options if key == "options" else known[key]
            if dataclasses.is_dataclass(inner) or (isinstance(inner, type) and issubclass(inner, Section)):
                yield from (f"{key}.{message}" for message in _unknown_keys(value, inner))


def nearest(name: str, known: Iterable[str]) -> str:
    """Words that name the closest of the ``known`` names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; the nearest known name is {close[0]!r}" if close else ""


def explain(error: Mapping[str, Any], section: str | None = None) -> str:
    """One of pydantic's errors as a line, of a key of ``section``."""
    where = ".".join(str(part) for part in (section, *error["loc"]) if part is not None)
    words = error["msg"].removeprefix("Value error, ")
    return f"{where}: {words[:1].lower()}{words[1:]}, got {error['input']!r}"
