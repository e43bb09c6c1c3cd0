"""RegDB: one visible and one thermal camera, ten splits of the identities into halves.

    root/{Visible,Thermal}/{identity}/*.bmp
    root/idx/{train,test}_{visible,thermal}_{1..10}.txt      lines `relative/path label`

The identity is the name of the image's folder; the label column is read but not used, as in the published loaders.
"""

import os
from pathlib import Path

import numpy as np

from vifast.data.records import INFRARED, VISIBLE, Dataset, make_samples, relabel, require

NUM_SPLITS = 10
CAMERAS = {"visible": 2, "thermal": 3}  # as the published evaluators number them
_MODALITY = {"visible": VISIBLE, "thermal": INFRARED}


def load(root: str | os.PathLike, *, split: int = 1, direction: str = "v2i") -> Dataset:
    """Read RegDB.

    Args:
        root: folder that holds `Visible`, `Thermal` and `idx`.
        split: 1..10.
        direction: `"v2i"` searches the thermal gallery with visible queries, `"i2v"` the other way round.

    Returns:
        Dataset with one trial, the whole gallery.

    Raises:
        FileNotFoundError: a folder or file is missing; the message has its path (and the line that names it).
        ValueError: an argument is out of range, or a line is malformed; the message has its path and line.
    """
    if split not in range(1, NUM_SPLITS + 1):
        raise ValueError(f"split: expected 1..{NUM_SPLITS}, got {split!r}")
    if direction not in ("v2i", "i2v"):
        raise ValueError(f'direction: expected "v2i" or "i2v", got {direction!r}')
    root = require(Path(root), "folder", "RegDB")
    visible, thermal = (_read_list(root, "train", kind, split) for kind in CAMERAS)
    train, identities = relabel(make_samples(visible + thermal))
    visible, thermal = (make_samples(_read_list(root, "test", kind, split)) for kind in CAMERAS)
    query, gallery = (visible, thermal) if direction == "v2i" else (thermal, visible)
    return Dataset("RegDB", root, train, query, gallery, identities, (np.arange(len(gallery)),))


def _read_list(root: Path, part: str, kind: str, split: int) -> list[tuple[Path, int, int, int]]:
    path = require(root / "idx" / f"{part}_{kind}_{split}.txt", "file", "RegDB")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdigit():
            raise ValueError(f"{path}:{number}: expected `relative/path label`, got {line[:80]!r}")
        image = root / name
        if not image.parent.name.isdigit():
            raise ValueError(f"{path}:{number}: expected an identity number as folder of the image, got {name!r}")
        if not image.is_file():
            raise FileNotFoundError(f"{path}:{number}: image not found: {image}")
        rows.append((image, int(image.parent.name), CAMERAS[kind], _MODALITY[kind]))
    if not rows:
        raise ValueError(f"{path}:1: the list is empty")
    return rows
