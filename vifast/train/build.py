"""From a configuration to its system."""

from __future__ import annotations

import dataclasses

import torch

from vifast import systems
from vifast.systems import System
from vifast.train.config import TrainConfig


def build_system(config: TrainConfig, num_classes: int, *, trained: bool = False) -> System:
    """The system of a configuration, in its memory format.

    Options of these names that are None are what the configuration says elsewhere: ``image_size``, and
    ``num_instances``, images of an identity in a batch. A ``trained`` one gets its weights later, and is built without
    the files that a fresh one starts from.
    """
    kind, options, dataset = systems.get(config.system), config.options, config.dataset
    told = {"image_size": (dataset.height, dataset.width), "num_instances": 2 * dataset.num_instances}
    told = {name: value for name, value in told.items() if getattr(options, name, 0) is None}
    nothing = dict.fromkeys(kind.starts) if trained else {}
    system = kind.build(dataclasses.replace(options, **told, **nothing), num_classes=num_classes)
    system.gather = config.gather
    return system.to(memory_format=torch.channels_last) if config.channels_last else system
