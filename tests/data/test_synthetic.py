import hashlib
import re

import numpy as np
import pytest
from PIL import Image

from vifast.data import synthetic
from vifast.data.matfile import read_mat


def digest(root):
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def ids_of(root, split):
    return {int(word) for word in (root / "exp" / f"{split}_id.txt").read_text().strip().split(",")}


def test_sysu_layout(sysu_tree):
    names = set(digest(sysu_tree))
    exp = {f"exp/{split}_id.txt" for split in ("train", "val", "test")} | {"exp/rand_perm_cam.mat"}
    assert exp <= names
    assert all(re.fullmatch(r"cam[1-6]/00(0[1-9]|1[0-6])/000[1-3]\.jpg", name) for name in names - exp)
    train, val, test = (ids_of(sysu_tree, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (7, 1, 8)
    assert train | val | test == set(range(1, 17))


def test_sysu_permutations_match_the_folders(sysu_tree):
    order = read_mat(sysu_tree / "exp" / "rand_perm_cam.mat")["rand_perm_cam"]
    assert order.shape == (6, 1)
    absent = 0
    for camera in range(1, 7):
        cells = order[camera - 1, 0]
        assert cells.shape == (16, 1)
        for identity in range(1, 17):
            rows = cells[identity - 1, 0]
            count = len(list((sysu_tree / f"cam{camera}" / f"{identity:04d}").glob("*.jpg")))
            assert rows.dtype == np.uint8
            assert rows.shape == (10, count)
            assert (np.sort(rows, axis=1) == np.arange(1, count + 1)).all()
            absent += count == 0
    assert absent == 2 * 4  # a quarter of 16 people, in cameras 1 and 2


def test_regdb_layout(regdb_tree):
    names = set(digest(regdb_tree))
    lists = {
        f"idx/{part}_{kind}_{n}.txt"
        for part in ("train", "test")
        for kind in ("visible", "thermal")
        for n in range(1, 11)
    }
    assert lists <= names
    assert all(re.fullmatch(r"(Visible|Thermal)/[1-8]/[vt]_0000[12]_[1-8]\.bmp", name) for name in names - lists)
    for n in range(1, 11):
        ids = {}
        for part in ("train", "test"):
            for kind in ("visible", "thermal"):
                lines = (regdb_tree / "idx" / f"{part}_{kind}_{n}.txt").read_text().splitlines()
                assert len(lines) == 4 * 2
                path, label = lines[-1].split(" ")
                assert (regdb_tree / path).is_file()
                assert label == "3"
                ids[part, kind] = {line.split("/")[1] for line in lines}
        assert ids["train", "visible"] == ids["train", "thermal"]
        assert not ids["train", "visible"] & ids["test", "visible"]


def test_infrared_is_grey_and_visible_is_not(sysu_tree):
    for camera in range(1, 7):
        image = np.array(Image.open(next((sysu_tree / f"cam{camera}").rglob("*.jpg"))), dtype=int)
        assert image.shape == (48, 24, 3)
        assert (np.ptp(image, axis=2).max() == 0) == (camera in (3, 6))


@pytest.mark.parametrize("layout", ["sysu", "regdb"])
def test_same_seed_same_bytes(layout, tmp_path):
    options = {"num_ids": 8, "size": (32, 32), "images_per_camera": 1}
    first, again, other = (
        digest(synthetic.write(layout, tmp_path / name, seed=seed, **options))
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert first == again
    assert first != other


def test_more_people_leave_the_first_ones_as_they_were(tmp_path):
    few, more = (
        digest(synthetic.write("regdb", tmp_path / str(n), num_ids=n, size=(32, 32), images_per_camera=1))
        for n in (8, 9)
    )
    assert all(more[name] == value for name, value in few.items() if name.endswith(".bmp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "market"}, "layout: expected one of sysu, regdb, got 'market'"),
        ({"num_ids": 7}, "num_ids: expected at least 8, got 7"),
        ({"num_test": 0}, "num_test: expected 1..6, got 0"),
        ({"num_test": 7}, "num_test: expected 1..6, got 7"),
        ({"seed": -1}, "seed: expected a non-negative integer, got -1"),
        ({"size": (64, 31)}, "size: expected even (height, width)"),
        ({"size": (64, 14)}, "size: expected even (height, width)"),
        ({"difficulty": 1.5}, "difficulty: expected 0..1, got 1.5"),
        ({"images_per_camera": 256}, "images_per_camera: expected 1..255, got 256"),
    ],
)
def test_bad_arguments(change, message, tmp_path):
    arguments = {"layout": "sysu", "num_ids": 8} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        synthetic.write(arguments.pop("layout"), tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_refuses_to_overwrite(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=re.escape(str(out))):
        synthetic.write("sysu", out, num_ids=8)
    assert (out / "mine.txt").read_text() == "kept"


def test_fills_an_empty_folder(tmp_path):
    synthetic.write("regdb", tmp_path / "out", num_ids=8, size=(32, 32), images_per_camera=1)
    (tmp_path / "empty").mkdir()
    synthetic.write("regdb", tmp_path / "empty", num_ids=8, size=(32, 32), images_per_camera=1)
    assert digest(tmp_path / "empty") == digest(tmp_path / "out")


def test_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(synthetic, "take_picture", fail)
    with pytest.raises(OSError, match="disk full"):
        synthetic.write("sysu", tmp_path / "out", num_ids=8)
    assert not list(tmp_path.iterdir())


def test_every_split_has_someone(tmp_path):
    root = synthetic.write("sysu", tmp_path / "few", num_ids=8, num_test=6, size=(32, 16), images_per_camera=1)
    assert [len(ids_of(root, split)) for split in ("train", "val", "test")] == [1, 1, 6]
