"""A system's features of a test set, and its scores under the dataset's protocol."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vifast import retrieval, systems
from vifast.data import Dataset
from vifast.systems import Batch, System
from vifast.train import checkpoint
from vifast.train.config import TrainConfig, load_config
from vifast.train.datasets import eval_loader, open_dataset

#: How each dataset is scored (idkl 10): which gallery rows a query leaves out, and which CMC it reports.
PROTOCOLS = {
    "SYSU-MM01": {"exclude": "sysu", "cmc": "identity"},
    "RegDB": {"exclude": "none", "cmc": "plain"},
}


@dataclass(frozen=True)
class Scores:
    """Means over the protocol's trials, in 0..1; ``cmc [20]`` from rank 1."""

    rank1: float
    mean_ap: float
    mean_inp: float
    cmc: tuple[float, ...]

    def scalars(self) -> dict[str, float]:
        return {"rank1": self.rank1, "mean_ap": self.mean_ap, "mean_inp": self.mean_inp}

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class Evaluation:
    """Scores and the features they come from: ``[Q, D]``, ``[G, D]`` on the CPU, in the dataset's order."""

    scores: Scores
    query: Tensor
    gallery: Tensor


def evaluate_run(run: Path, data: Path) -> Evaluation:
    """Scores the newest weights of a run's folder on the test identities of the dataset at ``data``.

    Raises:
        FileNotFoundError: ``run`` is not a run, or has no checkpoint yet.
        ConfigError, ValueError: its configuration, its weights or the dataset cannot be used.
    """
    for name in ("config.yaml", "run.json"):
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run}: not a run's folder, it has no {name}")
    folder = checkpoint.latest(run)
    if folder is None:
        raise FileNotFoundError(f"{run}: no checkpoint yet")
    config = load_config(run / "config.yaml", [f"data={json.dumps(str(data))}", "options.weights=null"])
    num_classes = json.loads((run / "run.json").read_text())["num_classes"]
    system = systems.get(config.system).build(config.options, num_classes=num_classes)
    checkpoint.load_weights(folder, system)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return evaluate_system(system.to(device), open_dataset(config), config)


def evaluate_system(system: System, dataset: Dataset, config: TrainConfig) -> Evaluation:
    """Extracts query and gallery features once, and scores every trial's gallery."""
    query, gallery = (extract(system, eval_loader(part, config)) for part in (dataset.query, dataset.gallery))
    return Evaluation(score(query, gallery, dataset), query, gallery)


def extract(system: System, loader: Iterable[Batch]) -> Tensor:
    """Features of all images in the loader's order, float32 ``[N, D]`` on the CPU."""
    device = next(system.parameters()).device
    training = system.training
    system.eval()
    try:
        with torch.inference_mode():
            parts = [
                system.embed({name: value.to(device, non_blocking=True) for name, value in batch.items()})
                for batch in loader
            ]
            return torch.cat([part.float().cpu() for part in parts])
    finally:
        system.train(training)


def score(query: Tensor, gallery: Tensor, dataset: Dataset) -> Scores:
    """Scores of given features under the dataset's protocol, averaged over its trials."""
    trials = []
    for rows in dataset.trials:
        samples = dataset.gallery.select(rows)
        trials.append(
            retrieval.evaluate(
                query,
                gallery[torch.from_numpy(rows)],
                dataset.query.labels,
                samples.labels,
                dataset.query.cams,
                samples.cams,
                metric="cosine",
                **PROTOCOLS[dataset.name],
            )
        )
    cmc = np.mean([np.asarray(trial.cmc, dtype=np.float64) for trial in trials], axis=0)
    return Scores(
        rank1=float(cmc[0]),
        mean_ap=float(np.mean([float(trial.mean_ap) for trial in trials])),
        mean_inp=float(np.mean([float(trial.mean_inp) for trial in trials])),
        cmc=tuple(cmc.tolist()),
    )
