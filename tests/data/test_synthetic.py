import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from vifast.data import llcm, synthetic
from vifast.data.matfile import read_mat


def digest(root):
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def ids_of(root, split):
    return {int(word) for word in (root / "exp" / f"{split}_id.txt").read_text().strip().split(",")}


def test_sysu_layout(sysu_tree):
    names = set(digest(sysu_tree))
    exp = {f"exp/{split}_id.txt" for split in ("train", "val", "test")} | {"exp/rand_perm_cam.mat", "counts.json"}
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
    } | {"counts.json"}
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


def test_llcm_layout(llcm_tree):
    names = digest(llcm_tree)
    train = r"(vis|nir)/00(0[1-9]|1[0-2])/00\d\d_c0[1-9]_s003_f0000[12]_(vis|nir)\.jpg"
    test = r"test_(vis|nir)/cam[1-9]/00(0[1-9]|1[0-2])/00\d\d_c0[1-9]_s003_f0000[12]_(vis|nir)\.jpg"
    lists = {f"idx/{part}_{kind}.txt" for part in ("train", "test") for kind in ("vis", "nir")}
    others = lists | {"idx/test_id.txt", "counts.json"}
    assert others <= set(names)
    assert all(re.fullmatch(train, name) or re.fullmatch(test, name) for name in set(names) - others)
    assert sorted(entry.name for entry in (llcm_tree / "test_vis").iterdir()) == [f"cam{n}" for n in range(1, 10)]
    assert not (llcm_tree / "test_nir" / "cam3").exists()
    ids = {int(word) for word in (llcm_tree / "idx" / "test_id.txt").read_text().split(",")}
    assert len(ids) == 5
    for kind in ("vis", "nir"):
        listed = {}
        for part in ("train", "test"):
            lines = [line.split(" ") for line in (llcm_tree / "idx" / f"{part}_{kind}.txt").read_text().splitlines()]
            listed[part] = {int(path.split("/")[1]) for path, _ in lines}
            assert {int(label) for _, label in lines} == set(range(len(listed[part])))
        assert listed["test"] == ids
        assert listed["train"] == set(range(1, 13)) - ids
        folder = {names[name] for name in names if name.startswith(f"test_{kind}/")}
        assert folder == {names[path] for path, _ in lines}  # the same images in both layouts


def test_vcm_layout(vcm_tree):
    names = set(digest(vcm_tree))
    info = {f"info/{name}.txt" for part in ("train", "test") for name in (f"{part}_name", f"track_{part}_info")}
    info |= {"info/query_IDX.txt", "counts.json"}
    assert info <= names
    frames = [(vcm_tree / "info" / f"{part}_name.txt").read_text().splitlines() for part in ("train", "test")]
    assert sorted(frames[0] + frames[1]) == sorted(names - info)
    assert all(re.fullmatch(r"Test/000[1-8]/(rgb|ir)/D(\d|1[0-2])/000[1-4]\.jpg", name) for name in frames[1])
    tracks = [[int(word) for word in line.split()] for line in (vcm_tree / "info" / "track_test_info.txt").open()]
    assert [track[2] - track[1] + 1 for track in tracks] == [2 if n % 4 == 3 else 4 for n in range(3 * 6)]
    for code, first, last, identity, camera in tracks:
        kind = "ir" if code == 1 else "rgb"
        assert {frame.rsplit("/", 1)[0] for frame in frames[1][first - 1 : last]} == {
            f"Test/{identity:04d}/{kind}/D{camera}"
        }
    queries = [int(word) for word in (vcm_tree / "info" / "query_IDX.txt").read_text().split()]
    assert queries == [n for n, track in enumerate(tracks, start=1) if track[0] == 1]


def test_frames_of_a_tracklet_show_one_walk(vcm_tree):
    """Neighbouring frames are more alike than frames of two tracklets, and no two are the same."""
    folder = next((vcm_tree / "Train").glob("*/rgb/*"))
    others = [path for path in (vcm_tree / "Train").glob("*/rgb/*") if path != folder]
    frames, other = ([np.array(Image.open(f), float) for f in sorted(p.iterdir())[:2]] for p in (folder, others[0]))
    near, far = (np.abs(frames[0] - image).mean() for image in (frames[1], other[0]))
    assert 0 < near < 0.5 * far


def test_counts_are_those_of_the_reader(llcm_tree, caplog):
    counts = json.loads((llcm_tree / "counts.json").read_text())
    assert counts["train identities"] == 7
    assert counts["test visible images"] == 5 * 3 * 2
    assert llcm.load(llcm_tree).counts == counts
    assert not caplog.records


def test_infrared_is_grey_and_visible_is_not(sysu_tree):
    for camera in range(1, 7):
        image = np.array(Image.open(next((sysu_tree / f"cam{camera}").rglob("*.jpg"))), dtype=int)
        assert image.shape == (48, 24, 3)
        assert (np.ptp(image, axis=2).max() == 0) == (camera in (3, 6))


@pytest.mark.parametrize("layout", ["sysu", "regdb", "llcm", "vcm"])
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
        ({"layout": "market"}, "layout: expected one of sysu, regdb, llcm, vcm, got 'market'"),
        ({"domain": "moon"}, "domain: expected one of plain, regdb, sysu, llcm, vcm, got 'moon'"),
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


def test_a_benchmark_is_four_domains_of_different_people(tmp_path):
    options = {"num_ids": 8, "size": (32, 16), "images_per_camera": 1}
    roots = synthetic.write_benchmark(tmp_path / "benchmark", seed=2, **options)
    assert list(roots) == ["sysu", "regdb", "llcm", "vcm"]
    alone = [synthetic.write(name, tmp_path / name, seed=8 + n, domain=name, **options) for n, name in enumerate(roots)]
    assert [digest(root) for root in roots.values()] == [digest(root) for root in alone]
    sizes = {name: Image.open(next(root.rglob("*.[jb][pm][gp]"))).size for name, root in roots.items()}
    assert sizes == {"sysu": (16, 32), "regdb": (12, 24), "llcm": (14, 28), "vcm": (18, 36)}


def test_a_domain_changes_the_pictures_and_not_the_files(tmp_path):
    options = {"num_ids": 8, "size": (32, 16), "images_per_camera": 1}
    plain, dark = (synthetic.write("llcm", tmp_path / name, domain=name, **options) for name in ("plain", "llcm"))
    assert digest(plain).keys() == digest(dark).keys()

    def brightness(root):
        return np.mean([np.asarray(Image.open(path)).mean() for path in root.rglob("*_vis.jpg")])

    assert brightness(dark) < 0.8 * brightness(plain)
