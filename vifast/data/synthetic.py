"""Synthetic VI-ReID datasets: procedural people photographed by day and by infrared lamp, in published layouts.

The real readers read them; the demo and the tests run on them. Everything is drawn from one seed: the same arguments
write the same bytes (for one version of NumPy and Pillow). RegDB's thermal camera is a near-infrared one in the plain
domain. `write_benchmark` writes all four, each in a domain of its own, for lifelong learning.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vifast.data import counts, llcm, regdb, sysu, vcm
from vifast.data.domains import DOMAINS, Domain
from vifast.data.layouts import READERS
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
    domain: str = "plain",
) -> Path:
    """Write a dataset.

    Args:
        layout: `"sysu"`, `"regdb"`, `"llcm"` (test images in both of its layouts) or `"vcm"`.
        out: folder to create. Written beside its final place first and renamed when complete.
        num_ids: identities, at least 8.
        num_test: how many of them are for testing; by default half (RegDB, where it is drawn ten times) or a quarter.
            Of the rest SYSU-MM01 lists a sixth as val.
        seed: any non-negative integer.
        size: height and width of the pictures, even numbers, at least 32 and 16.
        images_per_camera: pictures of an identity by a camera in one modality, 1..255; default 4 (SYSU-MM01, LLCM) or
            10 (RegDB). For HITSZ-VCM frames of a tracklet, default 12; every fourth tracklet has half as many.
        difficulty: 0 (studio) .. 1 (blurred, noisy, occluded, look-alikes).
        domain: what its people wear and its cameras see, one of :data:`~vifast.data.domains.DOMAINS`: `"plain"`, or in
            the manner of one of the four. It scales `size`.

    Returns:
        The folder `out`.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: `out` exists and is not an empty folder.
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(_LAYOUTS)}, got {layout!r}")
    if domain not in DOMAINS:
        raise ValueError(f"domain: expected one of {', '.join(DOMAINS)}, got {domain!r}")
    if num_ids < 8:
        raise ValueError(f"num_ids: expected at least 8, got {num_ids!r}")
    if num_test is None:
        num_test = num_ids // (2 if layout == "regdb" else 4)
    if not 1 <= num_test <= num_ids - 2:
        raise ValueError(f"num_test: expected 1..{num_ids - 2}, got {num_test!r}")
    if seed < 0:
        raise ValueError(f"seed: expected a non-negative integer, got {seed!r}")
    if size[0] < 32 or size[1] < 16 or size[0] % 2 or size[1] % 2:
        raise ValueError(f"size: expected even (height, width) of at least (32, 16), got {size!r}")
    if not 0.0 <= difficulty <= 1.0:
        raise ValueError(f"difficulty: expected 0..1, got {difficulty!r}")
    if images_per_camera is None:
        images_per_camera = {"regdb": 10, "vcm": 12}.get(layout, 4)
    if not 1 <= images_per_camera <= 255:
        raise ValueError(f"images_per_camera: expected 1..255, got {images_per_camera!r}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out: expected a new or an empty folder, got {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        draft.chmod(0o755)
        style = DOMAINS[domain]
        size = tuple(2 * round(side * factor / 2) for side, factor in zip(size, style.size, strict=True))
        _LAYOUTS[layout](draft, _Studio(num_ids, num_test, seed, size, images_per_camera, difficulty, style))
        counts.write(draft, {})  # nothing is expected yet
        counts.write(draft, READERS[layout](draft).counts)
        os.replace(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return out


def write_benchmark(out: str | os.PathLike, *, seed: int = 0, **options) -> dict[str, Path]:
    """Write the four layouts, each with people of its own and in its own domain, as folders of `out`.

    Args:
        out: folder to create.
        seed: of the benchmark; no person of one is in another.
        **options: of :func:`write`, for all four.

    Returns:
        Their folders by layout.

    Raises:
        ValueError, FileExistsError: as :func:`write`.
    """
    order = enumerate(_LAYOUTS)
    seeds = len(_LAYOUTS) * seed
    return {name: write(name, Path(out) / name, seed=seeds + n, domain=name, **options) for n, name in order}


@dataclass(frozen=True)
class _Studio:
    """The people and cameras of one dataset, and the pictures they make."""

    num_ids: int
    num_test: int
    seed: int
    size: tuple[int, int]
    images_per_camera: int
    difficulty: float
    domain: Domain

    def rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])

    def person(self, identity: int) -> Person:
        return draw_person(self.rng(_PEOPLE, identity), self.difficulty, self.domain.season)

    def camera(self, number: int, *, infrared: bool, outdoor: bool) -> Camera:
        rng = self.rng(_CAMERAS, number)
        how = {"size": self.size, "difficulty": self.difficulty, "domain": self.domain}
        return draw_camera(rng, infrared=infrared, outdoor=outdoor, **how)

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
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(1, self.images_per_camera + 1):
            rng = self.rng(_PICTURES, identity, number, n)
            image = take_picture(camera, person, rng, size=self.size, difficulty=self.difficulty)
            Image.fromarray(image).save(folder / name(n), **options)

    def film(self, camera: Camera, number: int, person: Person, identity: int, root: Path, names: list[str]) -> None:
        """Write the frames of one tracklet: the person walks on from each to the next."""
        (root / names[0]).parent.mkdir(parents=True)
        for n, name in enumerate(names):
            rng, grain = self.rng(_PICTURES, identity, number), self.rng(_PICTURES, identity, number, n + 1)
            image = take_picture(
                camera, person, rng, size=self.size, difficulty=self.difficulty, walked=0.5 * n, grain=grain
            )
            Image.fromarray(image).save(root / name, quality=92)


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


def _split(studio: _Studio) -> dict[str, list[int]]:
    order = (studio.rng(_SPLITS).permutation(studio.num_ids) + 1).tolist()
    return {"train": sorted(order[studio.num_test :]), "test": sorted(order[: studio.num_test])}


def _write_llcm(root: Path, studio: _Studio) -> None:
    """Everybody by three of the nine cameras; the test images both listed and, as hard links, in folders."""
    (root / "idx").mkdir()
    splits = _split(studio)
    for kind, numbers in llcm.CAMERAS.items():
        cameras = {n: studio.camera(n, infrared=kind == "nir", outdoor=n > 4) for n in numbers}
        for number in numbers:
            (root / f"test_{kind}" / f"cam{number}").mkdir(parents=True)
        for part, ids in splits.items():
            lines = []
            for label, identity in enumerate(ids):
                seen = studio.rng(_SPLITS, identity).choice(llcm.CAMERAS["vis"], 3, replace=False)
                for number in sorted(set(seen.tolist()) & set(numbers)):
                    stem = f"{identity:04d}_c{number:02d}_s{studio.seed % 1000:03d}"
                    names = [f"{stem}_f{n:05d}_{kind}.jpg" for n in range(1, studio.images_per_camera + 1)]
                    folder = root / kind / f"{identity:04d}"
                    # One camera is two sensors: its infrared pictures are another stream of random numbers.
                    stream = number + (len(llcm.CAMERAS["vis"]) if kind == "nir" else 0)
                    person, name = studio.person(identity), ["", *names].__getitem__
                    studio.shoot(cameras[number], stream, person, identity, folder, name, quality=92)
                    lines += [f"{kind}/{folder.name}/{name} {label}" for name in names]
                    if part == "test":
                        _link(folder, names, root / f"test_{kind}" / f"cam{number}" / folder.name)
            (root / "idx" / f"{part}_{kind}.txt").write_text("\n".join(lines) + "\n")
    (root / "idx" / "test_id.txt").write_text(",".join(map(str, splits["test"])) + "\n")


def _link(folder: Path, names: list[str], other: Path) -> None:
    other.mkdir()
    for name in names:
        try:
            os.link(folder / name, other / name)
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / name, other / name)


def _write_vcm(root: Path, studio: _Studio) -> None:
    """Everybody by three cameras, a tracklet in each modality; every fourth tracklet has half the frames."""
    (root / "info").mkdir()
    cameras = {
        (number, infrared): studio.camera(number, infrared=infrared, outdoor=number > 6)
        for number in range(1, 13)
        for infrared in (True, False)
    }
    for part, ids in _split(studio).items():
        frames, tracklets, queries = [], [], []
        for identity in ids:
            person = studio.person(identity)
            seen = sorted((studio.rng(_SPLITS, identity).choice(12, 3, replace=False) + 1).tolist())
            for infrared in (True, False):
                for number in seen:
                    count = studio.images_per_camera
                    count = max(count // 2, 1) if len(tracklets) % 4 == 3 else count
                    folder = f"{part.capitalize()}/{identity:04d}/{'ir' if infrared else 'rgb'}/D{number}"
                    names = [f"{folder}/{n:04d}.jpg" for n in range(1, count + 1)]
                    studio.film(cameras[number, infrared], number + 12 * infrared, person, identity, root, names)
                    code = vcm.INFRARED_CODE if infrared else 2
                    tracklets.append(f"{code} {len(frames) + 1} {len(frames) + count} {identity} {number}")
                    frames += names
                    queries += [len(tracklets)] if infrared else []
        (root / "info" / f"{part}_name.txt").write_text("\n".join(frames) + "\n")
        (root / "info" / f"track_{part}_info.txt").write_text("\n".join(tracklets) + "\n")
    # The last part is the test.
    (root / "info" / "query_IDX.txt").write_text(" ".join(map(str, queries)) + "\n")


_LAYOUTS = {"sysu": _write_sysu, "regdb": _write_regdb, "llcm": _write_llcm, "vcm": _write_vcm}
