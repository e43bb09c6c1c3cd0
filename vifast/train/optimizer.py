"""From a configuration to an optimiser."""

from __future__ import annotations

import torch

from vifast.systems import System
from vifast.train.config import ConfigError, OptimizerConfig

#: float32 numbers that an optimiser keeps of every parameter.
STATE_SIZE = {"sgd": 1, "adam": 2, "adamw": 2}


def build_optimizer(system: System, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser over the system's parameter groups, each with its ``base_lr``.

    Raises:
        ConfigError: ``lr_scale`` names a group that the system does not have.
    """
    groups = system.parameter_groups()
    unknown = sorted(config.lr_scale.keys() - groups.keys())
    if unknown:
        raise ConfigError(f"optimizer.lr_scale: expected among {', '.join(groups)}, got {unknown[0]!r}")
    rated = [
        {"params": parameters, "base_lr": config.lr * config.lr_scale.get(name, 1.0)}
        for name, parameters in groups.items()
    ]
    common = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": config.fused}
    if config.name == "sgd":
        return torch.optim.SGD(rated, momentum=config.momentum, nesterov=config.momentum > 0, **common)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name](rated, **common)
