"""The stages of a lifelong run, as systems that take no memory: whether they fit, and what each will leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vifast.data import Dataset
from vifast.systems import Batch
from vifast.systems.stage import KNOWLEDGE, WEIGHTS
from vifast.train.build import build_system
from vifast.train.config import ConfigError, TrainConfig
from vifast.train.datasets import train_sampler

if TYPE_CHECKING:
    from vifast.train.lifelong import Stage


def rehearse(stages: Iterable[Stage]) -> list[Mapping[str, Tensor] | None]:
    """What each stage will know of those before it: zeros of the shapes to come, and None of the first.

    Raises:
        ConfigError: a stage cannot be trained, or cannot go on from the one before it.
    """
    found, left, place = [], None, ""
    for stage in stages:
        try:
            train_sampler(stage.dataset, stage.config)
            with torch.device("meta"):
                system = build_system(stage.config, stage.dataset.num_labels, trained=True)
            if left is not None:
                system.continue_from(left.__getitem__, place)
        except ValueError as error:
            raise ConfigError(f"stages.{stage.names[-1]}: {error}") from error
        known = None if left is None else left[KNOWLEDGE]
        found.append(known and {name: torch.zeros(rows.shape) for name, rows in known.items()})
        knowledge = system.eval().finish(_Unseen(stage.dataset, stage.config))
        left, place = {WEIGHTS: system.state_dict(), KNOWLEDGE: knowledge}, stage.folder.name
    return found


class _Unseen:
    """One image of every identity, whose features are of no use; as `vifast.systems.TrainingImages`."""

    def __init__(self, dataset: Dataset, config: TrainConfig):
        self.dataset, self.seed, self._size = dataset.name, config.seed, (config.dataset.height, config.dataset.width)
        self.labels = torch.from_numpy(np.unique(dataset.train.labels))
        self.modality = torch.zeros_like(self.labels)

    def features(self, embed: Callable[[Batch], Tensor]) -> Tensor:
        pixels = torch.empty(1, 3, *self._size, device="meta")
        feat = embed({"image": pixels, "modality": torch.zeros(1, dtype=torch.int64, device="meta")})
        return torch.zeros(len(self.labels), feat.size(1))
