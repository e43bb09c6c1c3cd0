"""What every reader returns: samples as columns, and a dataset of three splits with its gallery draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

VISIBLE, INFRARED = 0, 1
MODALITIES = ("visible", "infrared")


class Row(NamedTuple):
    """One image while a reader collects it; `place` is the file (and line) that names it."""

    path: Path
    identity: int
    camera: int
    modality: int
    place: str = ""
    tracklet: int = 0


@dataclass(frozen=True)
class Samples:
    """Images as columns of equal length N.

    `paths [N]`; `labels [N]` int64: 0..num_labels-1 in a training split, the dataset's own identity numbers in query
    and gallery; `cams [N]` int64 camera numbers; `modality [N]` int64, 0 visible, 1 infrared. Where images are frames,
    `tracklets [N]` int64 is equal for the frames of one tracklet, which follow each other in the order of time.

    Example:
        >>> samples = Samples((Path("a.jpg"), Path("b.jpg")), *np.array([[0, 1], [1, 3], [0, 1]]))
        >>> len(samples), samples.select(np.array([1])).paths[0].name
        (2, 'b.jpg')
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    cams: np.ndarray
    modality: np.ndarray
    tracklets: np.ndarray | None = None

    def __post_init__(self):
        for name in ("labels", "cams", "modality", *(() if self.tracklets is None else ("tracklets",))):
            if getattr(self, name).shape != (len(self.paths),):
                raise ValueError(f"{name}: expected shape ({len(self.paths)},), got {getattr(self, name).shape}")

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> "Samples":
        """The samples at integer positions, or under a mask, `rows`."""
        rows = np.arange(len(self))[rows]
        columns = (self.labels, self.cams, self.modality, self.tracklets)
        return Samples(tuple(self.paths[i] for i in rows), *(None if c is None else c[rows] for c in columns))


@dataclass(frozen=True)
class Dataset:
    """One dataset as its protocol reads it.

    `identities [num_labels]` are the dataset's numbers of the training labels, in their order. `trials` holds, for
    every trial of the protocol, the positions in `gallery` that form that trial's gallery. `damage` says in words what
    was left out, and `counts` what was found, by name.
    """

    name: str
    root: Path
    train: Samples
    query: Samples
    gallery: Samples
    identities: np.ndarray
    trials: tuple[np.ndarray, ...]
    damage: tuple[str, ...] = ()
    counts: Mapping[str, int] | None = None

    @property
    def num_labels(self) -> int:
        return len(self.identities)

    def trial_gallery(self, trial: int) -> Samples:
        """The gallery of one trial."""
        return self.gallery.select(self.trials[trial])


def make_samples(rows: Sequence[tuple], *, tracklets: bool = False) -> Samples:
    """Samples from :class:`Row` or (path, label, camera, modality) tuples; with a column of tracklets on request."""
    columns = np.array([row[1:4] for row in rows], dtype=np.int64).reshape(len(rows), 3).T
    numbers = np.array([row.tracklet for row in rows], dtype=np.int64) if tracklets else None
    return Samples(tuple(row[0] for row in rows), *columns, numbers)


def relabel(samples: Samples) -> tuple[Samples, np.ndarray]:
    """The samples with contiguous labels in ascending order of identity, and the identities."""
    identities, labels = np.unique(samples.labels, return_inverse=True)
    return replace(samples, labels=labels.reshape(-1)), identities


def joined(first: Samples, second: Samples) -> Samples:
    """The samples of both, in this order."""
    columns = [
        None if getattr(first, name) is None else np.concatenate([getattr(part, name) for part in (first, second)])
        for name in ("labels", "cams", "modality", "tracklets")
    ]
    return Samples(first.paths + second.paths, *columns)


def require(path: Path, kind: str, dataset: str) -> Path:
    """`path`, which must exist as a `"file"` or a `"folder"` of `dataset`.

    Raises:
        FileNotFoundError: it does not.
    """
    if not (path.is_file() if kind == "file" else path.is_dir()):
        raise FileNotFoundError(f"{dataset}: {kind} not found: {path}")
    return path
