"""What every reader returns: samples as columns, and a dataset of three splits with its gallery draws."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

VISIBLE, INFRARED = 0, 1


@dataclass(frozen=True)
class Samples:
    """Images as columns of equal length N.

    `paths [N]`; `labels [N]` int64: 0..num_labels-1 in a training split, the dataset's own identity numbers in query
    and gallery; `cams [N]` int64 camera numbers; `modality [N]` int64, 0 visible, 1 infrared.

    Example:
        >>> samples = Samples((Path("a.jpg"), Path("b.jpg")), *np.array([[0, 1], [1, 3], [0, 1]]))
        >>> len(samples), samples.select(np.array([1])).paths[0].name
        (2, 'b.jpg')
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    cams: np.ndarray
    modality: np.ndarray

    def __post_init__(self):
        for name in ("labels", "cams", "modality"):
            if getattr(self, name).shape != (len(self.paths),):
                raise ValueError(f"{name}: expected shape ({len(self.paths)},), got {getattr(self, name).shape}")

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> "Samples":
        """The samples at integer positions, or under a mask, `rows`."""
        rows = np.arange(len(self))[rows]
        return Samples(tuple(self.paths[i] for i in rows), self.labels[rows], self.cams[rows], self.modality[rows])


@dataclass(frozen=True)
class Dataset:
    """One dataset as its protocol reads it.

    `identities [num_labels]` are the dataset's numbers of the training labels, ascending. `trials` holds, for every
    trial of the protocol, the positions in `gallery` that form that trial's gallery.
    """

    name: str
    root: Path
    train: Samples
    query: Samples
    gallery: Samples
    identities: np.ndarray
    trials: tuple[np.ndarray, ...]

    @property
    def num_labels(self) -> int:
        return len(self.identities)

    def trial_gallery(self, trial: int) -> Samples:
        """The gallery of one trial."""
        return self.gallery.select(self.trials[trial])


def make_samples(rows: list[tuple[Path, int, int, int]]) -> Samples:
    """Samples from (path, label, camera, modality) rows."""
    columns = np.array([row[1:] for row in rows], dtype=np.int64).reshape(len(rows), 3).T
    return Samples(tuple(row[0] for row in rows), *columns)


def relabel(samples: Samples) -> tuple[Samples, np.ndarray]:
    """The samples with contiguous labels in ascending order of identity, and the identities."""
    identities, labels = np.unique(samples.labels, return_inverse=True)
    return Samples(samples.paths, labels.reshape(-1), samples.cams, samples.modality), identities


def require(path: Path, kind: str, dataset: str) -> Path:
    """`path`, which must exist as a `"file"` or a `"folder"` of `dataset`.

    Raises:
        FileNotFoundError: it does not.
    """
    if not (path.is_file() if kind == "file" else path.is_dir()):
        raise FileNotFoundError(f"{dataset}: {kind} not found: {path}")
    return path
