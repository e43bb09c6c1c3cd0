"""Synthetic VI-ReID datasets: procedural people photographed by day and by infrared lamp, in published layouts.

The real readers read them; the demo and the tests run on them. Everything is drawn from one seed: the same arguments
write the same bytes (for one version of NumPy and Pillow). RegDB's thermal camera is a near-infrared one here too.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vifast.data import regdb, sysu
from vifast.data.matfile import write_mat
from vifast.data.people import Person, draw_person
from vifast.data.scene import Camera, draw_camera, take_picture

DEFAULT_DIFFICULTY = 0.1
_PEOPLE, _CAMERAS, _PICTURES, _SPLITS = range(4)  # independent random streams of one seed


def write(
    layout: str,
    out: str | os.PathLike,
    *,
    num_ids: int = 96,
    num_test: int | None = None,
    seed: int = 0,
    size: tuple[int, int] = (128, 64),
    images_per_camera: int | None = None,
    difficulty: float = DEFAULT_DIFFICULTY,
) -> Path:
    """Write a dataset.

    Args:
        layout: `"sysu"` or `"regdb"`.
        out: folder to create. Written beside its final place first and renamed when complete.
        num_ids: identities, at least 8.
        num_test: how many of them are for testing; by default a quarter (SYSU-MM01) or half (RegDB, drawn ten times).
            Of the rest SYSU-MM01 lists a sixth as val.
        seed: any non-negative integer.
        size: height and width of the pictures, even numbers, at least 32 and 16.
        images_per_camera: pictures of an identity by a camera, 1..255; default 4 (SYSU-MM01), 10 (RegDB).
        difficulty: 0 (studio) .. 1 (blurred, noisy, occluded, look-alikes).

    Returns:
        The folder `out`.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: `out` exists and is not an empty folder.
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(_LAYOUTS)}, got {layout!r}")
    if num_ids < 8:
        raise ValueError(f"num_ids: expected at least 8, got {num_ids!r}")
    if num_test is None:
        num_test = num_ids // (4 if layout == "sysu" else 2)
    if not 1 <= num_test <= num_ids - 2:
        raise ValueError(f"num_test: expected 1..{num_ids - 2}, got {num_test!r}")
    if seed < 0:
        raise ValueError(f"seed: expected a non-negative integer, got {seed!r}")
    if size[0] < 32 or size[1] < 16 or size[0] % 2 or size[1] % 2:
        raise ValueError(f"size: expected even (height, width) of at least (32, 16), got {size!r}")
    if not 0.0 <= difficulty <= 1.0:
        raise ValueError(f"difficulty: expected 0..1, got {difficulty!r}")
    if images_per_camera is None:
        images_per_camera = 4 if layout == "sysu" else 10
    if not 1 <= images_per_camera <= 255:
        raise ValueError(f"images_per_camera: expected 1..255, got {images_per_camera!r}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out: expected a new or an empty folder, got {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        draft.chmod(0o755)
        _LAYOUTS[layout](draft, _Studio(num_ids, num_test, seed, size, images_per_camera, difficulty))
        os.replace(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return out


@dataclass(frozen=True)
class _Studio:
    """The people and cameras of one dataset, and the pictures they make."""

    num_ids: int
    num_test: int
    seed: int
    size: tuple[int, int]
    images_per_camera: int
    difficulty: float

    def rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])

    def person(self, identity: int) -> Person:
        return draw_person(self.rng(_PEOPLE, identity), self.difficulty)

    def camera(self, number: int, *, infrared: bool, outdoor: bool) -> Camera:
        rng = self.rng(_CAMERAS, number)
        return draw_camera(rng, infrared=infrared, outdoor=outdoor, size=self.size, difficulty=self.difficulty)

    def shoot(
        self,
        camera: Camera,
        number: int,
        person: Person,
        identity: int,
        folder: Path,
        name: Callable,
        **options,
    ) -> None:
        """Write the pictures of `person` by camera `number` into `folder`, called `name(n)`, n from 1."""
        folder.mkdir(parents=True)
        for n in range(1, self.images_per_camera + 1):
            rng = self.rng(_PICTURES, identity, number, n)
            image = take_picture(camera, person, rng, size=self.size, difficulty=self.difficulty)
            Image.fromarray(image).save(folder / name(n), **options)


def _write_sysu(root: Path, studio: _Studio) -> None:
    cameras = {
        number: studio.camera(number, infrared=number in sysu.INFRARED_CAMERAS, outdoor=number > 3)
        for number in sysu.CAMERAS
    }
    draws = np.empty((len(cameras), 1), dtype=object)
    for number in cameras:
        draws[number - 1, 0] = np.empty((studio.num_ids, 1), dtype=object)
    order = studio.rng(_SPLITS).permutation(studio.num_ids) + 1
    # A quarter of the people never enters the rooms of cameras 1 and 2: indoor search ignores their queries.
    outdoors = set(order[3::4].tolist())
    for identity in range(1, studio.num_ids + 1):
        person = studio.person(identity)
        for number, camera in cameras.items():
            absent = identity in outdoors and number in sysu.GALLERY_CAMERAS["indoor"]
            count = 0 if absent else studio.images_per_camera
            if count:
                folder = root / f"cam{number}" / f"{identity:04d}"
                studio.shoot(camera, number, person, identity, folder, "{:04d}.jpg".format, quality=92)
            rng = studio.rng(_SPLITS, identity, number)
            rows = [rng.permutation(count) + 1 for _ in range(sysu.NUM_TRIALS)]
            draws[number - 1, 0][identity - 1, 0] = np.array(rows, dtype=np.uint8).reshape(sysu.NUM_TRIALS, count)
    exp = root / "exp"
    exp.mkdir()
    write_mat(exp / "rand_perm_cam.mat", {"rand_perm_cam": draws})
    test, val = studio.num_test, max(1, (studio.num_ids - studio.num_test) // 6)
    splits = {"test": order[:test], "val": order[test : test + val], "train": order[test + val :]}
    for split, ids in splits.items():
        (exp / f"{split}_id.txt").write_text(",".join(map(str, sorted(ids.tolist()))) + "\n")


def _write_regdb(root: Path, studio: _Studio) -> None:
    folders = {"visible": "Visible", "thermal": "Thermal"}
    images: dict[str, dict[int, list[str]]] = {kind: {} for kind in folders}
    for kind, number in regdb.CAMERAS.items():
        camera = studio.camera(number, infrared=kind == "thermal", outdoor=True)
        for identity in range(1, studio.num_ids + 1):
            folder = f"{folders[kind]}/{identity}"

            def name(n: int, kind: str = kind, identity: int = identity) -> str:
                return f"{kind[0]}_{n:05d}_{identity}.bmp"

            studio.shoot(camera, number, studio.person(identity), identity, root / folder, name)
            images[kind][identity] = [f"{folder}/{name(n)}" for n in range(1, studio.images_per_camera + 1)]
    (root / "idx").mkdir()
    for split in range(1, regdb.NUM_SPLITS + 1):
        order = studio.rng(_SPLITS, split).permutation(studio.num_ids) + 1
        half = studio.num_ids // 2
        for part, ids in {
            "train": sorted(order[:half].tolist()),
            "test": sorted(order[half:].tolist()),
        }.items():
            for kind in folders:
                lines = [f"{path} {label}" for label, identity in enumerate(ids) for path in images[kind][identity]]
                (root / "idx" / f"{part}_{kind}_{split}.txt").write_text("\n".join(lines) + "\n")


_LAYOUTS = {"sysu": _write_sysu, "regdb": _write_regdb}
