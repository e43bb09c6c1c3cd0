"""SYSU-MM01: six cameras, 1, 2, 4, 5 visible and 3, 6 infrared.

    root/cam{1..6}/{identity:04d}/{n:04d}.jpg
    root/exp/{train,val,test}_id.txt      first line, comma-separated identities
    root/exp/rand_perm_cam.mat            the ten published gallery draws

Training uses train and val identities together. Queries are the infrared images of the test identities; the gallery of
a trial is drawn from their visible images.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vifast import _draws
from vifast.data import counts
from vifast.data.damage import Damage
from vifast.data.matfile import read_mat
from vifast.data.records import INFRARED, VISIBLE, Dataset, Row, Samples, make_samples, relabel, require

CAMERAS = (1, 2, 3, 4, 5, 6)
INFRARED_CAMERAS = (3, 6)
GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
NUM_TRIALS = _draws.NUM_TRIALS


def load(
    root: str | os.PathLike,
    *,
    mode: str = "all",
    shots: int = 1,
    draw: str = "published",
    on_damage: str = "error",
    decode: bool = False,
) -> Dataset:
    """Read SYSU-MM01.

    Args:
        root: folder that holds `cam1` .. `cam6` and `exp`.
        mode: gallery cameras, `"all"` or `"indoor"`.
        shots: gallery images per identity and camera, 1 or 10.
        draw: `"published"` takes the draws of `rand_perm_cam.mat`; `"agw"` draws with Python's generator seeded by the
            trial, as AGW does (which has one shot; ten are drawn in the same order, without replacement).
        on_damage: `"error"` raises at the first thing that is wrong; `"skip"` logs it and leaves it out.
        decode: decode every image, which finds truncated files (about a millisecond an image).

    Returns:
        Dataset with ten trials; `gallery` holds the visible test images of all four cameras in either mode.

    Raises:
        FileNotFoundError: a folder or file is missing; the message has its path.
        ValueError: an argument is out of range, or a file is malformed; the message has its path and line.
    """
    if mode not in GALLERY_CAMERAS:
        raise ValueError(f'mode: expected "all" or "indoor", got {mode!r}')
    if shots not in (1, 10):
        raise ValueError(f"shots: expected 1 or 10, got {shots!r}")
    if draw not in ("published", "agw"):
        raise ValueError(f'draw: expected "published" or "agw", got {draw!r}')
    damage = Damage("SYSU-MM01", on_damage, decode)
    root = require(Path(root), "folder", "SYSU-MM01")
    cameras = tuple(camera for camera in CAMERAS if damage.folder(root / f"cam{camera}"))
    listed = {split: damage.identities(root / "exp" / f"{split}_id.txt") for split in ("train", "val", "test")}
    train_ids = {**listed["val"], **listed["train"]}
    kept = damage.not_tested(train_ids, listed["test"])
    train = _collect(root, {i: place for i, place in train_ids.items() if i in kept}, cameras, damage)
    test = _collect(root, listed["test"], cameras, damage, numbered=draw == "published")
    train, identities = relabel(make_samples(train))
    query = make_samples([row for row in test if row.modality == INFRARED])
    gallery = make_samples([row for row in test if row.modality == VISIBLE])
    searched = tuple(camera for camera in GALLERY_CAMERAS[mode] if camera in cameras)
    if draw == "published":
        trials = _published_trials(root / "exp" / "rand_perm_cam.mat", gallery, searched, shots, damage)
    else:
        trials = _draws.at_random(gallery.labels, gallery.cams, cameras=searched, shots=shots)
    dataset = Dataset("SYSU-MM01", root, train, query, gallery, identities, trials)
    size = f"gallery of a trial, {mode} search, {shots} shot{'s' if shots > 1 else ''}"
    return counts.checked(dataset, damage.notes, {size: len(trials[0])})


def _collect(
    root: Path, ids: Mapping[int, str], cameras: tuple[int, ...], damage: Damage, *, numbered: bool = False
) -> list[Row]:
    """All images of `ids` (with the place that names them) in `cameras`, sorted by path as strings."""
    rows = []
    for camera in cameras:
        modality = INFRARED if camera in INFRARED_CAMERAS else VISIBLE
        for identity in ids:
            images = (root / f"cam{camera}" / f"{identity:04d}").glob("*.jpg")  # yields nothing where absent
            rows += [Row(path, identity, camera, modality) for path in images]
    rows.sort(key=lambda row: str(row.path))
    if numbered:
        rows = [row for row in rows if row.modality == INFRARED or _is_numbered(row.path, damage)]
    return damage.in_both_modalities(damage.readable(rows), ids)


def _is_numbered(image: Path, damage: Damage) -> bool:
    if not (image.stem.isascii() and image.stem.isdigit()):
        words = "expected a number as file name, because rand_perm_cam.mat refers to images by number"
        damage.found(ValueError(f"{image}: {words}"))
        return False
    return True


def _published_trials(
    path: Path, gallery: Samples, cameras: tuple[int, ...], shots: int, damage: Damage
) -> tuple[np.ndarray, ...]:
    variables = read_mat(require(path, "file", "SYSU-MM01"))
    order = variables.get("rand_perm_cam")
    if order is None or order.dtype != object or order.size != len(CAMERAS):
        raise ValueError(f"{path}: expected a {len(CAMERAS)} x 1 cell named rand_perm_cam")

    def missing(camera: int, identity: int, number: int) -> str:
        image = path.parents[1] / f"cam{camera}" / f"{identity:04d}" / f"{number:04d}.jpg"
        return f"names an image that does not exist: {image}"

    numbers = np.array([int(image.stem) for image in gallery.paths], dtype=np.int64)
    table = _draws.cell_table(order)
    if damage.on_damage == "skip":
        table = _of_present(
            table, gallery, numbers, lambda *image: damage.found(ValueError(f"{path}: {missing(*image)}"))
        )
    try:
        return _draws.by_permutation(
            gallery.labels, gallery.cams, numbers, table, cameras=cameras, shots=shots, missing=missing
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _of_present(
    table: Callable[[int, int], np.ndarray],
    gallery: Samples,
    numbers: np.ndarray,
    absent: Callable[[int, int, int], None],
) -> Callable[[int, int], np.ndarray]:
    """The permutations without the images that are gone: the next of a row takes the place of one that is."""
    present = set(zip(gallery.cams.tolist(), gallery.labels.tolist(), numbers.tolist(), strict=True))

    def order(camera: int, identity: int) -> np.ndarray:
        rows = np.asarray(table(camera, identity))
        gone = [n for n in np.unique(rows).astype(int).tolist() if (camera, identity, n) not in present]
        for number in gone:
            absent(camera, identity, number)
        if rows.ndim != 2 or not gone:
            return rows
        kept = [row[~np.isin(row, gone)] for row in rows]
        return np.stack([row[: min(map(len, kept))] for row in kept])

    return order
