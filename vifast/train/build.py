"""From a configuration, or the folder of a run, to its system, and to PyTorch's settings."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from vifast import systems
from vifast.systems import System
from vifast.train import checkpoint
from vifast.train.config import TrainConfig, load_config
from vifast.train.record import CONFIG, read_facts, require_run


def prepare_torch(config: TrainConfig) -> None:
    """Threads, and whether operations must repeat bit for bit, as configured."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.deterministic


def build_system(config: TrainConfig, num_classes: int, *, trained: bool = False, resumed: bool = False) -> System:
    """The system of a configuration, in its memory format.

    Options of these names that are None are what the configuration says elsewhere: ``image_size``, and
    ``num_instances``, images of an identity in a batch. A ``trained`` one gets its weights later, and is built without
    the files that a fresh one starts from; a ``resumed`` one, too, but it still needs what teaches it.
    """
    kind, options, dataset = systems.get(config.system), config.options, config.dataset
    told = {"image_size": (dataset.height, dataset.width), "num_instances": 2 * dataset.num_instances}
    told = {name: value for name, value in told.items() if getattr(options, name, 0) is None}
    nothing = dict.fromkeys(name for name in kind.starts if trained or (resumed and name == "weights"))
    system = kind.build(dataclasses.replace(options, **told, **nothing), num_classes=num_classes)
    system.gather = config.gather
    return system.to(memory_format=torch.channels_last) if config.channels_last else system


def load_run(run: Path, which: str = "last", overrides: Sequence[str] = ()) -> tuple[System, TrainConfig]:
    """The system of a run's folder with its ``"last"`` or ``"best"`` weights, on the CPU, and its configuration.

    Raises:
        FileNotFoundError: ``run`` is not a run, or has no such checkpoint.
        ConfigError, ValueError: its configuration or its weights cannot be used.
    """
    require_run(run)
    weights = checkpoint.find_weights(run, which)
    config = load_config(run / CONFIG, overrides)
    system = build_system(config, num_classes(run), trained=True)
    checkpoint.load_weights(weights, system)
    return system, config


def num_classes(run: Path) -> int:
    """Identities that a run was trained on."""
    return read_facts(run)["num_classes"]
