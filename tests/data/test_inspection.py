"""Which dataset a folder is, and whether it holds what it should."""

import shutil
from pathlib import Path

import pytest

from vifast.data.counts import expected
from vifast.data.inspection import inspect
from vifast.data.layouts import recognise


def test_published_counts_add_up():
    """Numbers of the papers that are sums of others."""
    sysu, llcm, vcm = (expected(name, Path("nowhere")).counts for name in ("SYSU-MM01", "LLCM", "HITSZ-VCM"))
    for kind, cameras in {"visible": (1, 2, 4, 5), "infrared": (3, 6)}.items():
        by_camera = sum(sysu[f"test {kind} images of camera {camera}"] for camera in cameras)
        assert by_camera == sysu[f"test {kind} images"]
    kinds = [f"{part} {kind} images" for part in ("train", "test") for kind in ("visible", "infrared")]
    assert sum(llcm[name] for name in kinds) == 46_767
    tests = [vcm[f"test {kind} tracklets"] for kind in ("visible", "infrared")]
    assert vcm["train tracklets"] + sum(tests) == 21_863


@pytest.mark.parametrize(("layout", "marks"), [("sysu", "exp"), ("regdb", "Thermal"), ("llcm", "nir"), ("vcm", "info")])
def test_layouts_are_recognised_even_where_something_is_missing(layout, marks, request, tmp_path):
    root = shutil.copytree(request.getfixturevalue(f"{layout}_tree"), tmp_path / "root")
    assert recognise(root) == layout
    shutil.rmtree(root / marks)
    assert recognise(root) == layout


def test_other_folders_are_not_recognised(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset: folder not found"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected the folder of a dataset \(sysu: exp, cam1, .*\), found nothing"):
        recognise(tmp_path)
    (tmp_path / "holiday").mkdir()
    with pytest.raises(ValueError, match="found holiday"):
        recognise(tmp_path)


@pytest.mark.parametrize("layout", ["sysu", "regdb", "llcm", "vcm"])
def test_a_whole_dataset_is_sound(layout, request):
    found = inspect(request.getfixturevalue(f"{layout}_tree"))
    assert found.sound
    assert found.damage == ()
    assert found.source == "counts.json"
    assert {"train identities", "test identities"} <= {name for name, _, _ in found.rows}
    assert sum(expected is not None for _, expected, _ in found.rows) >= 6
    assert len({name for name, _, _ in found.rows}) == len(found.rows)


def test_damage_of_another_split_is_found(regdb_copy):
    path = regdb_copy / "idx" / "test_visible_7.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    found = inspect(regdb_copy)
    assert not found.sound
    assert ("split 7: test visible images", 8, 7) in found.rows
