"""How many identities, images and tracklets a dataset has, against how many it should have.

Expected are the published numbers of a dataset; a drawn one brings its own in `counts.json`.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vifast._files import write_text
from vifast.data.records import INFRARED, MODALITIES, VISIBLE, Dataset, Samples, joined

FILE = "counts.json"
LONG = 12  # fewest frames of a tracklet that CKDA counts
_log = logging.getLogger("vifast.data")


def _published(train: tuple[int, int, int], test: tuple[int, int, int], what: str = "images") -> dict[str, int]:
    """(identities, visible, infrared) of both parts, named as `count` names them."""
    return {
        name: number
        for part, (identities, visible, infrared) in {"train": train, "test": test}.items()
        for name, number in (
            (f"{part} identities", identities),
            (f"{part} visible {what}", visible),
            (f"{part} infrared {what}", infrared),
        )
    }


# SYSU-MM01's, RegDB's and LLCM's from specs idkl 9 and ckda 1.2; galleries of a trial from idkl 10.
PUBLISHED: dict[str, dict[str, int]] = {
    "SYSU-MM01": {
        **_published((395, 22258, 11909), (96, 6775, 3803)),
        "test visible images of camera 1": 1374,
        "test visible images of camera 2": 1565,
        "test visible images of camera 4": 1918,
        "test visible images of camera 5": 1918,
        "test infrared images of camera 3": 1883,
        "test infrared images of camera 6": 1920,
        "gallery of a trial, all search, 1 shot": 301,
        "gallery of a trial, all search, 10 shots": 3010,
        "gallery of a trial, indoor search, 1 shot": 112,
        "gallery of a trial, indoor search, 10 shots": 1120,
    },
    "RegDB": _published((206, 2060, 2060), (206, 2060, 2060)),
    "LLCM": {**_published((713, 16946, 13975), (351, 8680, 7166)), "gallery of a trial, infrared to visible": 484},
    # Spec ckda 1.2; the sum of training tracklets is Lin et al.'s 21,863 less those of the test.
    "HITSZ-VCM": {
        "train identities": 500,
        "train tracklets": 11061,
        f"train visible tracklets of {LONG} frames": 5460,
        f"train infrared tracklets of {LONG} frames": 4291,
        "test identities": 427,
        "test visible tracklets": 5643,
        "test infrared tracklets": 5159,
        f"test visible tracklets of {LONG} frames": 5099,
        f"test infrared tracklets of {LONG} frames": 4584,
    },
}


@dataclass(frozen=True)
class Expected:
    """Numbers by name, and whose they are."""

    source: str
    counts: Mapping[str, int]


def expected(dataset: str, root: Path) -> Expected:
    """What `dataset` at `root` should hold.

    Raises:
        ValueError: `counts.json` is not what `vifast synth` writes; the message has its path.
    """
    path = root / FILE
    if not path.is_file():
        return Expected("published", PUBLISHED[dataset])
    try:
        counts = json.loads(path.read_text())
        if not isinstance(counts, dict) or not all(isinstance(value, int) for value in counts.values()):
            raise ValueError("expected names with integers")
    except ValueError as error:
        raise ValueError(f"{path}: not a table of counts ({error})") from None
    return Expected(FILE, counts)


def write(root: Path, counts: Mapping[str, int]) -> None:
    """Writes what a drawn dataset holds beside it."""
    write_text(root / FILE, json.dumps(dict(counts), indent=2) + "\n")


def differences(found: Mapping[str, int], wanted: Expected) -> list[str]:
    """A line for every number that was both counted and expected, and differs."""
    return [
        f"{name}: expected {wanted.counts[name]:,} ({wanted.source}), found {number:,}"
        for name, number in found.items()
        if wanted.counts.get(name, number) != number
    ]


def checked(dataset: Dataset, damage: list[str], more: Mapping[str, int] | None = None) -> Dataset:
    """The dataset with its `damage` and its `counts`, `more` of them the reader's own.

    A number other than expected is logged (logger `vifast.data`, level warning).
    """
    found = {**count(dataset), **(more or {})}
    lines = differences(found, expected(dataset.name, dataset.root))
    if lines:
        _log.warning("%s at %s: %s", dataset.name, dataset.root, "; ".join(lines))
    return replace(dataset, damage=tuple(damage), counts=found)


def count(dataset: Dataset) -> dict[str, int]:
    """Identities, images, tracklets by part and modality, and images of the test by camera."""
    counts = {}
    for part, samples in {"train": dataset.train, "test": joined(dataset.query, dataset.gallery)}.items():
        counts[f"{part} identities"] = len(np.unique(samples.labels))
        for modality in (VISIBLE, INFRARED):
            counts |= _of_modality(f"{part} {MODALITIES[modality]}", samples.select(samples.modality == modality))
        if samples.tracklets is not None:
            counts[f"{part} tracklets"] = sum(counts[f"{part} {kind} tracklets"] for kind in MODALITIES)
        else:
            for modality in (VISIBLE, INFRARED):
                cams = samples.cams[samples.modality == modality]
                for camera, number in zip(*np.unique(cams, return_counts=True), strict=True):
                    counts[f"{part} {MODALITIES[modality]} images of camera {camera}"] = int(number)
    return counts


def _of_modality(name: str, samples: Samples) -> dict[str, int]:
    counts = {f"{name} images": len(samples)}
    if samples.tracklets is not None:
        frames = np.unique(samples.tracklets, return_counts=True)[1]
        counts[f"{name} tracklets"] = len(frames)
        counts[f"{name} tracklets of {LONG} frames"] = int((frames >= LONG).sum())
    return counts
