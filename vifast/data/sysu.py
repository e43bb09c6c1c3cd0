"""SYSU-MM01: six cameras, 1, 2, 4, 5 visible and 3, 6 infrared.

    root/cam{1..6}/{identity:04d}/{n:04d}.jpg
    root/exp/{train,val,test}_id.txt      first line, comma-separated identities
    root/exp/rand_perm_cam.mat            the ten published gallery draws

Training uses train and val identities together. Queries are the infrared images of the test identities; the gallery of
a trial is drawn from their visible images.
"""

import os
import random
from pathlib import Path

import numpy as np

from vifast.data.matfile import read_mat
from vifast.data.records import INFRARED, VISIBLE, Dataset, Samples, make_samples, relabel, require

CAMERAS = (1, 2, 3, 4, 5, 6)
INFRARED_CAMERAS = (3, 6)
GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
NUM_TRIALS = 10


def load(root: str | os.PathLike, *, mode: str = "all", shots: int = 1, draw: str = "published") -> Dataset:
    """Read SYSU-MM01.

    Args:
        root: folder that holds `cam1` .. `cam6` and `exp`.
        mode: gallery cameras, `"all"` or `"indoor"`.
        shots: gallery images per identity and camera, 1 or 10.
        draw: `"published"` takes the draws of `rand_perm_cam.mat`; `"agw"` draws one image per identity and camera
            with Python's generator seeded by the trial, as AGW does.

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
    if draw == "agw" and shots != 1:
        raise ValueError(f'shots: expected 1 with draw="agw", got {shots!r}')
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
        trials = _agw_trials(gallery, GALLERY_CAMERAS[mode])
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
    """Row t of cell (camera, identity) is trial t's order of image numbers; the first `shots` of it are taken."""
    variables = read_mat(require(path, "file", "SYSU-MM01"))
    order = variables.get("rand_perm_cam")
    if order is None or order.dtype != object or order.size != len(CAMERAS):
        raise ValueError(f"{path}: expected a {len(CAMERAS)} x 1 cell named rand_perm_cam")
    position = {_key(gallery, i, path): i for i in range(len(gallery))}
    trials: list[list[int]] = [[] for _ in range(NUM_TRIALS)]
    for camera in cameras:
        cells = order.flat[camera - 1].reshape(-1)
        for identity in np.unique(gallery.labels).tolist():
            numbers = cells[identity - 1] if identity <= len(cells) else np.zeros((NUM_TRIALS, 0))
            if numbers.ndim != 2 or len(numbers) != NUM_TRIALS:
                where = f"{path}: camera {camera}, identity {identity}"
                raise ValueError(f"{where}: expected {NUM_TRIALS} x n numbers, got shape {numbers.shape}")
            for trial, row in zip(trials, numbers[:, :shots].astype(int).tolist(), strict=True):
                for number in row:
                    if (camera, identity, number) not in position:
                        image = path.parents[1] / f"cam{camera}" / f"{identity:04d}" / f"{number:04d}.jpg"
                        raise ValueError(f"{path}: names an image that does not exist: {image}")
                    trial.append(position[camera, identity, number])
    return tuple(np.sort(np.array(trial, dtype=np.int64)) for trial in trials)


def _key(gallery: Samples, row: int, source: Path) -> tuple[int, int, int]:
    path = gallery.paths[row]
    if not path.stem.isdigit():
        raise ValueError(f"{path}: expected a number as file name, because {source} refers to images by number")
    return int(gallery.cams[row]), int(gallery.labels[row]), int(path.stem)


def _agw_trials(gallery: Samples, cameras: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """One image per identity and camera, identities ascending, then cameras; `random.seed(trial)`."""
    groups = [
        rows.tolist()
        for identity in np.unique(gallery.labels)
        for camera in cameras
        if len(rows := np.flatnonzero((gallery.labels == identity) & (gallery.cams == camera)))
    ]
    draws = (random.Random(trial) for trial in range(NUM_TRIALS))
    return tuple(np.array([draw.choice(rows) for rows in groups], dtype=np.int64) for draw in draws)
