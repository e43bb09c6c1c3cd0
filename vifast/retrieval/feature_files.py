"""Feature files as other programs write them: rows with identities and cameras, and what protocols want besides."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from vifast import _checks
from vifast.retrieval import gallery_file
from vifast.retrieval._arguments import as_tensor, check_finite, codes_of

LABELS = ("ids", "cams", "tracklets", "images")
CHECKED = 65536  # rows looked at together


@dataclass(frozen=True)
class FeatureFile:
    """``features [N, D]`` and the labels ``[N]`` that the file has, by name."""

    path: Path
    features: Tensor
    labels: Mapping[str, Tensor]

    def need(self, name: str, reason: str) -> Tensor:
        """ValueError naming the file where it lacks a label."""
        if name not in self.labels:
            have = ", ".join(("features", *self.labels))
            raise ValueError(f"{self.path}: has no {name}, which {reason} needs; it has {have}")
        return self.labels[name]


def load(path: str | os.PathLike) -> FeatureFile:
    """Reads ``features`` and what there is of ``ids``, ``cams``, ``tracklets`` and ``images``.

    ``.npz`` and ``.safetensors`` hold them under these names, a folder as ``features.npy``, ``ids.npy`` and so on, a
    ``.npy`` file features alone. All but ``.npz`` are mapped, not read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, without features, of a dtype or shape that does not fit, not finite; the message begins
            with the path.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/query.npz"
        >>> np.savez(path, features=np.eye(3), ids=np.array([4, 7, 9]))
        >>> load(path).labels["ids"].tolist()
        [4, 7, 9]
    """
    path = Path(path)
    if path.is_dir():
        names = [name for name in ("features", *LABELS) if name == "features" or (path / f"{name}.npy").exists()]
        arrays = {name: gallery_file.read(path / f"{name}.npy").tensors["features"] for name in names}
    elif path.suffix == ".npz":
        arrays = _read_npz(path)
    elif path.suffix in (".npy", ".safetensors"):
        arrays = gallery_file.read(path).tensors
    elif path.exists():
        raise ValueError(f"{path}: expected a .npz, .npy or .safetensors file, or a folder of .npy files")
    else:
        raise FileNotFoundError(f"{path}: no such file")
    if "features" not in arrays:
        raise ValueError(f"{path}: expected an array named features, got {', '.join(arrays) or 'none'}")
    try:
        features = as_tensor("features", arrays["features"])
        _checks.rows("features", features)
        if features.numel() == 0:
            raise ValueError(f"features: expected at least one row and one column, got {list(features.shape)}")
        for start in range(0, len(features), CHECKED):
            check_finite("features", features[start : start + CHECKED], start)
        labels = {name: codes_of(name, arrays[name], "features", len(features)) for name in LABELS if name in arrays}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return FeatureFile(path, features, labels)


def load_pair(query: str | os.PathLike, gallery: str | os.PathLike) -> tuple[FeatureFile, FeatureFile]:
    """Both sides of a comparison.

    Raises:
        FileNotFoundError, ValueError: as :func:`load`; features of different widths or dtypes.
    """
    one, other = load(query), load(gallery)
    for what, a, b in (
        ("columns", one.features.size(1), other.features.size(1)),
        ("dtype", one.features.dtype, other.features.dtype),
    ):
        if a != b:
            raise ValueError(f"{other.path}: expected {what} {a} as in {one.path}, got {b}")
    return one, other


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("features", *LABELS) if name in file}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged .npz ({' '.join(str(error).split()) or type(error).__name__})") from error
