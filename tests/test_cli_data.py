import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vifast.data import synthetic


@pytest.fixture(scope="module")
def llcm_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "llcm"
    return synthetic.write("llcm", root, num_ids=8, size=(32, 16), images_per_camera=1)


def test_check_of_a_sound_dataset(vifast, llcm_root):
    status, output, error = vifast("data", "check", llcm_root)
    assert (status, error) == (0, "")
    assert output.startswith("LLCM at ")
    lines = [line.split() for line in output.splitlines()]
    assert ["train", "identities", "6", "6", "ok"] in lines
    assert output.splitlines()[-1] == "sound: everything is there, every image decodes"
    assert vifast("data", "check", llcm_root, "--quick")[1].splitlines()[-1] == "sound: everything is there"


def test_check_names_differences_and_damage(vifast, llcm_root, tmp_path):
    root = synthetic.write("llcm", tmp_path / "root", num_ids=8, size=(32, 16), images_per_camera=1)
    lists = root / "idx" / "train_vis.txt"
    images = [root / line.split(" ")[0] for line in lists.read_text().splitlines()]
    images[0].write_bytes(images[0].read_bytes()[:-30])
    images[1].unlink()
    status, output, error = vifast("data", "check", root)
    assert (status, error) == (1, "")
    assert f"damage {lists}:1: {images[0]}: cannot be decoded" in output
    assert f"damage {lists}:2: image not found: {images[1]}" in output
    lines = [line.split() for line in output.splitlines()]
    assert ["train", "visible", "images", "18", "16", "differs"] in lines
    assert output.splitlines()[-1] == "not sound: 2 things damaged"
    assert vifast("data", "check", root, "--quick")[1].splitlines()[-1] == "not sound: 1 things damaged"


def test_check_of_numbers_alone(vifast, tmp_path):
    root = synthetic.write("llcm", tmp_path / "root", num_ids=8, size=(32, 16), images_per_camera=1)
    (root / "counts.json").write_text(json.dumps({"train identities": 7}))
    status, output, _ = vifast("data", "check", root)
    assert status == 1
    assert ["train", "identities", "7", "6", "differs"] in [line.split() for line in output.splitlines()]


def test_long_lists_are_cut(vifast, tmp_path):
    root = synthetic.write("regdb", tmp_path / "root", num_ids=8, size=(32, 16), images_per_camera=4)
    for image in sorted((root / "Visible").rglob("*.bmp"))[1::2]:
        image.unlink()
    output = vifast("data", "check", root)[1]
    assert output.count("damage ") == 20
    assert "more; --all lists them" in output
    assert vifast("data", "check", root, "--all")[1].count("damage ") == 16 * 10  # in each split's list


@pytest.mark.parametrize("split", ["train", "test"])
def test_show_writes_a_contact_sheet(vifast, llcm_root, tmp_path, split):
    out = tmp_path / "sheet.png"
    status, output, error = vifast("data", "show", llcm_root, "--out", out, "--split", split, "--ids", 2)
    assert (status, error) == (0, "")
    assert f"wrote LLCM, {split}, to" in output
    assert np.ptp(np.array(Image.open(out))) > 0
    other = tmp_path / "augmented.png"
    assert vifast("data", "show", llcm_root, "--out", other, "--split", split, "--ids", 2, "--augment", "dakd")[0] == 0
    assert not np.array_equal(np.array(Image.open(other)), np.array(Image.open(out)))


def test_wrong_input_is_one_line_and_status_2(vifast, llcm_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("check", "nowhere"), "dataset: folder not found: nowhere"),
        (("check", tmp_path), f"{tmp_path}: expected the folder of a dataset"),
        (
            ("show", llcm_root, "--augment", "dak"),
            "preset: expected one of agw, caj, idkl, mce, dakd, dakd-regdb, ckda, got 'dak'",
        ),
        (("show", llcm_root, "--split", "val"), "split: expected one of train, test, got 'val'"),
    ):
        status, output, error = vifast("data", *arguments)
        assert (status, output) == (2, "")
        assert error.startswith(f"vifast: {message}")
        assert error.count("\n") == 1


def test_cache_decodes_for_training_and_tests(vifast, tmp_path):
    root = synthetic.write("llcm", tmp_path / "llcm", num_ids=8, size=(32, 16), images_per_camera=1)
    small = ("dataset.height=32", "dataset.width=16")
    status, output, error = vifast("data", "cache", root, *small)
    assert (status, error) == (0, "")
    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["train", "query", "gallery"]
    files = [Path(line.rpartition(" ")[2]) for line in lines]
    assert {file.parent for file in files} == {root / ".vifast-cache"}
    times = [file.stat().st_mtime_ns for file in files]
    assert vifast("data", "cache", root, *small, "--verify")[1] == output
    assert [file.stat().st_mtime_ns for file in files] == times
    files[0].write_bytes(files[0].read_bytes()[:-1])
    status, output, error = vifast("data", "cache", root, *small)
    assert (status, output) == (2, "")
    assert error.startswith(f"vifast: {files[0]}: damaged or truncated")
    elsewhere = f"dataset.cache_folder={tmp_path / 'kept'}"
    assert vifast("data", "cache", root, *small, elsewhere, "--config", "agw-llcm")[0] == 0
    assert len(list((tmp_path / "kept").glob("*.images"))) == 3
    assert vifast("data", "cache", root, *small, "--rebuild")[0] == 0
    assert vifast("data", "check", root)[0] == 0
