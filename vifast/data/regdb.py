"""RegDB: one visible and one thermal camera, ten splits of the identities into halves.

    root/{Visible,Thermal}/{identity}/*.bmp
    root/idx/{train,test}_{visible,thermal}_{1..10}.txt      lines `relative/path label`

The identity is the name of the image's folder; the label column is read but not used, as in the published loaders.
"""

import os
from pathlib import Path

import numpy as np

from vifast.data import counts
from vifast.data.damage import Damage, named_by
from vifast.data.records import INFRARED, VISIBLE, Dataset, Row, make_samples, relabel, require

NUM_SPLITS = 10
CAMERAS = {"visible": 2, "thermal": 3}  # as the published evaluators number them
_MODALITY = {"visible": VISIBLE, "thermal": INFRARED}


def load(
    root: str | os.PathLike,
    *,
    split: int = 1,
    direction: str = "v2i",
    on_damage: str = "error",
    decode: bool = False,
) -> Dataset:
    """Read RegDB.

    Args:
        root: folder that holds `Visible`, `Thermal` and `idx`.
        split: 1..10.
        direction: `"v2i"` searches the thermal gallery with visible queries, `"i2v"` the other way round.
        on_damage: `"error"` raises at the first thing that is wrong; `"skip"` logs it and leaves it out.
        decode: decode every image, which finds truncated files (about a millisecond an image).

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
    damage = Damage("RegDB", on_damage, decode)
    root = require(Path(root), "folder", "RegDB")
    parts = {}
    for part in ("train", "test"):
        rows = [row for kind in CAMERAS for row in _read_list(root, part, kind, split, damage)]
        parts[part] = damage.in_both_modalities(damage.readable(rows))
    kept = damage.not_tested(named_by(parts["train"]), named_by(parts["test"]))
    train, identities = relabel(make_samples([row for row in parts["train"] if row.identity in kept]))
    sides = (make_samples([row for row in parts["test"] if row.modality == m]) for m in (VISIBLE, INFRARED))
    query, gallery = sides if direction == "v2i" else reversed(tuple(sides))
    dataset = Dataset("RegDB", root, train, query, gallery, identities, (np.arange(len(gallery)),))
    return counts.checked(dataset, damage.notes)


def _read_list(root: Path, part: str, kind: str, split: int, damage: Damage) -> list[Row]:
    rows = []
    for place, name, _ in damage.listed(root / "idx" / f"{part}_{kind}_{split}.txt"):
        image = root / name
        if image.parent.name.isascii() and image.parent.name.isdigit():
            rows.append(Row(image, int(image.parent.name), CAMERAS[kind], _MODALITY[kind], place))
        else:
            damage.found(ValueError(f"{place}: expected an identity number as folder of the image, got {name!r}"))
    return rows
