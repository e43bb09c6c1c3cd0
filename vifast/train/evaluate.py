"""A system's features of a test set, and its scores under the dataset's protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from vifast._progress import steps
from vifast.data import Dataset, Loader
from vifast.data.records import VISIBLE
from vifast.retrieval import protocols
from vifast.retrieval.protocols import ProtocolResult
from vifast.systems import Batch, System
from vifast.systems.gather import all_rows
from vifast.train.build import load_run
from vifast.train.config import DatasetConfig, TrainConfig
from vifast.train.datasets import eval_loader, open_dataset


@dataclass(frozen=True)
class Evaluation:
    """Scores and the features they come from: ``[Q, D]``, ``[G, D]`` on the CPU, in the dataset's order."""

    scores: ProtocolResult
    query: Tensor
    gallery: Tensor


@dataclass(frozen=True)
class Extraction:
    """Features of a dataset's query and gallery images, ``[Q, D]`` and ``[G, D]`` on the CPU, in its order."""

    query: Tensor
    gallery: Tensor
    dataset: Dataset
    options: DatasetConfig

    def score(self, rerank: Mapping | None = None) -> ProtocolResult:
        """Under the dataset's protocol; ``rerank`` as the protocols take it."""
        return score(self.query, self.gallery, self.dataset, self.options, rerank)


def evaluate_run(run: Path, data: Path) -> Evaluation:
    """Scores the newest weights of a run's folder on the test identities of the dataset at ``data``; see
    :func:`extract_run`."""
    found = extract_run(run, data)
    return Evaluation(found.score(), found.query, found.gallery)


def extract_run(run: Path, data: Path, *, which: str = "last") -> Extraction:
    """Features of the test identities of the dataset at ``data``, by the ``"last"`` or ``"best"`` weights of a run.

    Raises:
        FileNotFoundError: ``run`` is not a run, or has no such checkpoint.
        ConfigError, ValueError: its configuration, its weights or the dataset cannot be used.
    """
    system, config = load_run(run, which, [f"data={json.dumps(str(data))}"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return extract_system(system.to(device), open_dataset(config), config)


def evaluate_system(system: System, dataset: Dataset, config: TrainConfig) -> Evaluation:
    """Extracts query and gallery features once, and scores every trial's gallery; all processes do it together."""
    found = extract_system(system, dataset, config)
    return Evaluation(found.score(), found.query, found.gallery)


def extract_system(system: System, dataset: Dataset, config: TrainConfig) -> Extraction:
    """Features of a dataset's query and gallery images by a system, where it is."""
    parts = {"query": dataset.query, "gallery": dataset.gallery}
    device = next(system.parameters()).device
    loaders = {name: eval_loader(part, config, device=device) for name, part in parts.items()}
    query, gallery = (extract(system, loader, name=name) for name, loader in loaders.items())
    return Extraction(query, gallery, dataset, config.dataset)


def extract(
    system: System, loader: Loader, embed: Callable[[Batch], Tensor] | None = None, *, name: str = "images"
) -> Tensor:
    """Features of all images in the loader's order, float32 ``[N, D]`` on the CPU; it loads to the system's device.

    Of several processes, which all call this, each takes whole batches in turn and all get the features: the same as
    of one process with the first one's system.

    Args:
        system: as it is; evaluation mode while this runs.
        loader: all its batches but the last have as many images.
        embed: by default the system's own.
        name: of this work, for whoever shows progress.
    """
    embed, training = embed or system.embed, system.training
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    sizes = [len(rows) for rows in loader.batch_sampler]
    if ranks > 1:
        for buffer in system.buffers():  # statistics of the images that a process trained on, for one
            dist.broadcast(buffer, 0)
        loader = loader.share(dist.get_rank(), ranks)
    system.eval()
    try:
        with torch.inference_mode(), _as_written(system):
            parts = [embed(batch).float().cpu() for batch in steps(loader, name)]
    finally:
        system.train(training)
    if ranks == 1:
        return torch.cat(parts)  # an ordinary tensor, which may take part in training
    padded = torch.stack([pad(part, (0, 0, 0, sizes[0] - len(part))) for part in parts])
    (everyone,) = all_rows(padded.to(next(system.parameters()).device))
    in_turn = everyone.unflatten(0, (ranks, -1)).transpose(0, 1)
    return in_turn.flatten(0, 2)[: sum(sizes)].cpu()


def _as_written(system: System) -> AbstractContextManager:
    """What is compiled is so for the one shape of batches in training; others would be compiled anew."""
    compiled = any(module._compiled_call_impl is not None for module in system.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


class TrainedImages:
    """The images a loader trains on, as `vifast.systems.TrainingImages`."""

    def __init__(self, system: System, loader: Loader, dataset: Dataset):
        self._system, self._loader, self.dataset, self.seed = system, loader, dataset.name, loader.seed
        self._device = next(system.parameters()).device
        columns = (dataset.train.labels, dataset.train.modality)
        columns = (torch.from_numpy(column).to(self._device) for column in columns)
        self.labels, self.modality = columns

    def features(self, embed: Callable[[Batch], Tensor]) -> Tensor:
        return extract(self._system, self._loader.plain(), embed).to(self._device)


def score(
    query: Tensor, gallery: Tensor, dataset: Dataset, options: DatasetConfig, rerank: Mapping | None = None
) -> ProtocolResult:
    """Scores of given features under the dataset's protocol; ``rerank`` as the protocols take it.

    Without a ``protocol`` in the options LLCM is scored by the benchmark's, or by IDKL's where its dataset has one
    trial, the whole gallery; HITSZ-VCM by tracklets or by their first frames, as its ``level`` says.
    """
    how: dict = {"rerank": rerank} | ({"protocol": options.protocol} if options.protocol else {})
    if dataset.name == "SYSU-MM01":
        parts = (dataset.query, dataset.gallery)
        labels = [part.labels for part in parts] + [part.cams for part in parts]
        how |= {"mode": options.mode, "shots": options.shots, "draw": dataset.trials}
        return protocols.sysu(query, gallery, *labels, **how)
    how["direction"] = "v2i" if (dataset.query.modality == VISIBLE).all() else "i2v"
    sides = [(query, dataset.query), (gallery, dataset.gallery)]
    (visible, v), (infrared, i) = sides if how["direction"] == "v2i" else sides[::-1]
    labels = (visible, infrared, v.labels, i.labels)
    if dataset.name == "RegDB":
        return protocols.regdb(*labels, **how)
    if dataset.name == "LLCM":
        how.setdefault("protocol", "benchmark" if len(dataset.trials) > 1 else "idkl")
        return protocols.llcm(*labels, v.cams, i.cams, **how)
    if options.level == "image":
        return protocols.vcm(*labels, v.cams, i.cams, level="image", **how)
    tracklets = {"visible_tracklets": v.tracklets, "infrared_tracklets": i.tracklets}
    return protocols.vcm(*labels, v.cams, i.cams, **tracklets, **how)
