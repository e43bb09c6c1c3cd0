"""LLCM: nine cameras, each a visible one by day and an infrared one by night.

    root/{vis,nir}/{identity:04d}/{identity:04d}_c{camera:02d}_s{..}_f{..}_{vis,nir}.jpg
    root/idx/train_{vis,nir}.txt                     lines `relative/path label`
and for testing either layout, or both at once
    root/idx/test_{vis,nir}.txt                      "lists": lines `relative/path label`
    root/idx/test_id.txt                             "folders": first line, comma-separated identities
    root/test_{vis,nir}/cam{1..9}/{identity:04d}/*.jpg   (no infrared images of camera 3)

The identity is the name of the image's folder. The lists' label column orders the training labels.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from vifast import _checks, _draws
from vifast.data import counts
from vifast.data.damage import Damage, named_by
from vifast.data.records import INFRARED, VISIBLE, Dataset, Row, Samples, make_samples, require

CAMERAS = {"vis": (1, 2, 3, 4, 5, 6, 7, 8, 9), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}  # of the folders for testing
LAYOUTS = ("lists", "folders")
_MODALITY = {"vis": VISIBLE, "nir": INFRARED}
_CAMERA = re.compile(r"_c(\d+)_")


def load(
    root: str | os.PathLike,
    *,
    direction: str = "i2v",
    draw: str = "random",
    layout: str = "auto",
    on_damage: str = "error",
    decode: bool = False,
) -> Dataset:
    """Read LLCM.

    Args:
        root: folder that holds `vis`, `nir` and `idx`, and perhaps `test_vis` and `test_nir`.
        direction: `"i2v"` searches visible images with infrared queries, `"v2i"` the other way round.
        draw: `"random"`, ten galleries of one image per identity and camera, drawn by Python's generator seeded by the
            trial (the benchmark); `"whole"`, one trial with everything (IDKL).
        layout: how the test images are found: `"lists"`, `"folders"`, or `"auto"`: by folders where there are any.
        on_damage: `"error"` raises at the first thing that is wrong; `"skip"` logs it and leaves it out.
        decode: decode every image, which finds truncated files (about a millisecond an image).

    Returns:
        Dataset whose training labels follow the lists' label column; `query` and `gallery` have the real cameras.

    Raises:
        FileNotFoundError: a folder or file is missing; the message has its path (and the line that names it).
        ValueError: an argument is out of range, or a line is malformed; the message has its path and line.

    Source:
        Zhang and Wang 2023 (DEEN); specs idkl 9, ckda 1.2.
    """
    _checks.one_of("direction", direction, ("v2i", "i2v"))
    _checks.one_of("draw", draw, ("random", "whole"))
    _checks.one_of("layout", layout, ("auto", *LAYOUTS))
    damage = Damage("LLCM", on_damage, decode)
    root = require(Path(root), "folder", "LLCM")
    if layout == "auto":
        layout = layouts(root)[-1]
    train, labels = _read_train(root, damage)
    if layout == "folders":
        named = damage.identities(root / "idx" / "test_id.txt")
        test = damage.in_both_modalities(damage.readable(_collect(root, named, damage)), named)
    else:
        rows = [row for kind in CAMERAS for row, _ in _read_list(root, "test", kind, damage)]
        test = damage.in_both_modalities(damage.readable(rows))
        named = named_by(test)
    kept = damage.not_tested(named_by(train), named)
    samples, identities = _relabel([row for row in train if row.identity in kept], labels)
    visible, infrared = (make_samples([row for row in test if row.modality == m]) for m in (VISIBLE, INFRARED))
    query, gallery = (visible, infrared) if direction == "v2i" else (infrared, visible)
    more = {}
    if draw == "random":
        trials = _draws.at_random(gallery.labels, gallery.cams)
        more = {f"gallery of a trial, {_WAYS[direction]}": len(trials[0])}
    else:
        trials = (np.arange(len(gallery)),)
    return counts.checked(Dataset("LLCM", root, samples, query, gallery, identities, trials), damage.notes, more)


_WAYS = {"v2i": "visible to infrared", "i2v": "infrared to visible"}


def layouts(root: Path) -> tuple[str, ...]:
    """Which layouts of the test images `root` has; `"lists"` where it has neither, for the reader to say so."""
    folders = ["folders"] if (root / "idx" / "test_id.txt").exists() or (root / "test_vis").exists() else []
    lists = ["lists"] if not folders or (root / "idx" / "test_vis.txt").exists() else []
    return tuple(lists + folders)


def _read_train(root: Path, damage: Damage) -> tuple[list[Row], dict[int, int]]:
    """The training rows, and the label of every identity in the lists."""
    rows, labels, owner = [], {}, {}
    for kind in CAMERAS:
        for row, label in _read_list(root, "train", kind, damage):
            before = labels.setdefault(row.identity, label)
            if before != label:
                words = f"identity {row.identity} has the label {label} here and {before} further up"
                damage.found(ValueError(f"{row.place}: {words}"))
            elif owner.setdefault(label, row.identity) != row.identity:
                words = f"identity {row.identity} has the label {label}, which is that of identity {owner[label]}"
                damage.found(ValueError(f"{row.place}: {words}"))
            else:
                rows.append(row)
    return damage.in_both_modalities(damage.readable(rows)), labels


def _read_list(root: Path, part: str, kind: str, damage: Damage) -> list[tuple[Row, int]]:
    rows = []
    for place, name, label in damage.listed(root / "idx" / f"{part}_{kind}.txt"):
        image = root / name
        camera = _CAMERA.search(image.name)
        if not (image.parent.name.isascii() and image.parent.name.isdigit()):
            damage.found(ValueError(f"{place}: expected an identity number as folder of the image, got {name!r}"))
        elif camera is None or int(camera[1]) not in CAMERAS["vis"]:
            words = "expected _c{camera}_ in the file name, one of 1..9"
            damage.found(ValueError(f"{place}: {words}, got {image.name!r}"))
        else:
            rows.append((Row(image, int(image.parent.name), int(camera[1]), _MODALITY[kind], place), label))
    return rows


def _collect(root: Path, ids: Mapping[int, str], damage: Damage) -> list[Row]:
    """All test images of `ids` in the folders of the cameras, sorted by path as strings in each modality."""
    rows = []
    for kind, cameras in CAMERAS.items():
        if not damage.folder(root / f"test_{kind}"):
            continue
        found = []
        for camera in cameras:
            folder = root / f"test_{kind}" / f"cam{camera}"
            if damage.folder(folder):
                for identity in ids:
                    images = (folder / f"{identity:04d}").glob("*.jpg")  # yields nothing where absent
                    found += [Row(image, identity, camera, _MODALITY[kind]) for image in images]
        rows += sorted(found, key=lambda row: str(row.path))
    return rows


def _relabel(rows: list[Row], labels: Mapping[int, int]) -> tuple[Samples, np.ndarray]:
    """Contiguous labels in the order of the lists' label column."""
    samples = make_samples(rows)
    identities = np.array(sorted({row.identity for row in rows}, key=lambda i: labels[i]), dtype=np.int64)
    position = {identity: label for label, identity in enumerate(identities.tolist())}
    mapped = np.array([position[identity] for identity in samples.labels.tolist()], dtype=np.int64)
    return replace(samples, labels=mapped), identities
