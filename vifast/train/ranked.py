"""The nearest gallery images of some queries: found by a run, kept by name, and shown without its model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vifast._files import write_text
from vifast.data import Dataset
from vifast.data.images import read_image
from vifast.data.records import Samples
from vifast.functional import class_centers
from vifast.report import RankedQuery
from vifast.retrieval import search
from vifast.retrieval.exclude import blocks_of
from vifast.train.evaluate import Evaluation

RANKED = "ranked.json"
NUM_QUERIES, NUM_RANKS = 20, 12
SHOWN = (128, 64)  # height and width of the pictures on a page


@dataclass(frozen=True)
class RankedNames:
    """A query and its nearest gallery images by their paths below the dataset's root, nearest first."""

    query: str
    label: int
    gallery: list[str]
    hits: list[bool]

    def pictures(self, root: Path) -> RankedQuery:
        """The images themselves.

        Raises:
            FileNotFoundError, ValueError: one is not below ``root``, or cannot be decoded.
        """
        image, *gallery = (read_image(root / name, SHOWN) for name in (self.query, *self.gallery))
        return RankedQuery(image, gallery, self.hits, f"person {self.label}")


def rank_queries(evaluation: Evaluation, dataset: Dataset) -> list[RankedNames]:
    """Evenly spaced queries before the first trial's gallery, by the protocol's distance and under its exclusion.

    Where images are frames, tracklets are compared, and shown by their first frames.
    """
    feat, query = _rows(evaluation.query, dataset.query)
    chosen = np.unique(np.linspace(0, len(query) - 1, NUM_QUERIES).round().astype(int))
    feat, query = feat[chosen], query.select(chosen)
    other, gallery = _rows(evaluation.gallery[dataset.trials[0]], dataset.trial_gallery(0))
    settings = evaluation.scores.settings
    labels = (query.labels, gallery.labels, query.cams, gallery.cams)
    block = blocks_of(settings["exclude"], *map(torch.from_numpy, labels))
    _, nearest = search(feat, other, min(NUM_RANKS, len(gallery)), metric=settings["metric"], exclude=block)
    names = [[path.relative_to(dataset.root).as_posix() for path in side.paths] for side in (query, gallery)]
    ranked = []
    for row, label in enumerate(query.labels.tolist()):
        found = [index for index in nearest[row].tolist() if index >= 0]
        hits = (gallery.labels[found] == label).tolist()
        ranked.append(RankedNames(names[0][row], label, [names[1][index] for index in found], hits))
    return ranked


def _rows(feat: Tensor, samples: Samples) -> tuple[Tensor, Samples]:
    """A row for every image, or for every tracklet: the mean of its frames."""
    if samples.tracklets is None:
        return feat, samples
    _, first, codes = np.unique(samples.tracklets, return_index=True, return_inverse=True)
    return class_centers(feat, torch.from_numpy(codes), len(first))[0], samples.select(first)


def save_ranked(out: Path, ranked: Iterable[RankedNames]) -> None:
    """Writes ``ranked.json`` into a run's folder."""
    write_text(out / RANKED, json.dumps([asdict(one) for one in ranked]) + "\n")


def load_ranked(out: Path) -> list[RankedNames]:
    """What `save_ranked` wrote; nothing where it has not been written yet.

    Raises:
        ValueError: the file is damaged.
    """
    path = out / RANKED
    if not path.is_file():
        return []
    try:
        return [RankedNames(**one) for one in json.loads(path.read_text())]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the ranked lists of a run ({error})") from error
