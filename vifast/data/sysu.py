"""SYSU-MM01: six cameras, 1, 2, 4, 5 visible and 3, 6 infrared.

    root/cam{1..6}/{identity:04d}/{n:04d}.jpg
    root/exp/{train,val,test}_id.txt      first line, comma-separated identities
    root/exp/rand_perm_cam.mat            the ten published gallery draws

Training uses train and val identities together. Queries are the infrared images of the test identities; the gallery of
a trial is drawn from their visible images.
"""

import os
from pathlib import Path

import numpy as np

from vifast import _draws
from vifast.data.matfile import read_mat
from vifast.data.records import INFRARED, VISIBLE, Dataset, Samples, make_samples, relabel, require

CAMERAS = (1, 2, 3, 4, 5, 6)
INFRARED_CAMERAS = (3, 6)
GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
NUM_TRIALS = _draws.NUM_TRIALS


def load(root: str | os.PathLike, *, mode: str = "all", shots: int = 1, draw: str = "published") -> Dataset:
    """Read SYSU-MM01.

    Args:
        root: folder that holds `cam1` .. `cam6` and `exp`.
        mode: gallery cameras, `"all"` or `"indoor"`.
        shots: gallery images per identity and camera, 1 or 10.
        draw: `"published"` takes the draws of `rand_perm_cam.mat`; `"agw"` draws with Python's generator seeded by the
            trial, as AGW does (which has one shot; ten are drawn in the same order, without replacement).

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
    root = require(Path(root), "folder", "SYSU-MM01")
    for camera in CAMERAS:
        require(root / f"cam{camera}", "folder", "SYSU-MM01")
    train, identities = relabel(_collect(root, _read_ids(root, "train") + _read_ids(root, "val"), CAMERAS))
    test_ids = _read_ids(root, "test")
    query = _collect(root, test_ids, INFRARED_CAMERAS)
    gallery = _collect(root, test_ids, GALLERY_CAMERAS["all"])
    if draw == "published":
        trials = _published_trials(root / "exp" / "rand_perm_cam.mat", gallery, GALLERY_CAMERAS[mode], shots)
    else:
        trials = _draws.at_random(gallery.labels, gallery.cams, cameras=GALLERY_CAMERAS[mode], shots=shots)
    return Dataset("SYSU-MM01", root, train, query, gallery, identities, trials)


def _read_ids(root: Path, split: str) -> list[int]:
    path = require(root / "exp" / f"{split}_id.txt", "file", "SYSU-MM01")
    line = path.read_text().partition("\n")[0]
    try:
        ids = [int(word) for word in line.strip().rstrip(",").split(",")]
    except ValueError:
        raise ValueError(f"{path}:1: expected comma-separated identity numbers, got {line[:80]!r}") from None
    return sorted(set(ids))


def _collect(root: Path, ids: list[int], cameras: tuple[int, ...]) -> Samples:
    """All images of `ids` in `cameras`, sorted by path as strings."""
    rows, present = [], set()
    for camera in cameras:
        modality = INFRARED if camera in INFRARED_CAMERAS else VISIBLE
        for identity in ids:
            images = (root / f"cam{camera}" / f"{identity:04d}").glob("*.jpg")  # yields nothing where absent
            found = [(path, identity, camera, modality) for path in images]
            rows += found
            present |= {identity} if found else set()
    for identity in ids:
        if identity not in present:
            wanted = ", ".join(f"cam{camera}" for camera in cameras)
            raise ValueError(f"SYSU-MM01: identity {identity} of {root / 'exp'} has no image in {wanted} of {root}")
    return make_samples(sorted(rows, key=lambda row: str(row[0])))


def _published_trials(path: Path, gallery: Samples, cameras: tuple[int, ...], shots: int) -> tuple[np.ndarray, ...]:
    variables = read_mat(require(path, "file", "SYSU-MM01"))
    order = variables.get("rand_perm_cam")
    if order is None or order.dtype != object or order.size != len(CAMERAS):
        raise ValueError(f"{path}: expected a {len(CAMERAS)} x 1 cell named rand_perm_cam")

    def missing(camera: int, identity: int, number: int) -> str:
        image = path.parents[1] / f"cam{camera}" / f"{identity:04d}" / f"{number:04d}.jpg"
        return f"names an image that does not exist: {image}"

    numbers = np.array([_number(image, path) for image in gallery.paths], dtype=np.int64)
    table = _draws.cell_table(order)
    try:
        return _draws.by_permutation(
            gallery.labels, gallery.cams, numbers, table, cameras=cameras, shots=shots, missing=missing
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _number(image: Path, source: Path) -> int:
    if not image.stem.isdigit():
        raise ValueError(f"{image}: expected a number as file name, because {source} refers to images by number")
    return int(image.stem)
