import re
import shutil

import numpy as np
import pytest

from vifast.data import sysu
from vifast.data.matfile import read_mat, write_mat


def ids_of(root, *splits):
    return sorted(int(word) for split in splits for word in (root / "exp" / f"{split}_id.txt").read_text().split(","))


def indoor_ids(root, ids):
    return [identity for identity in ids if (root / "cam1" / f"{identity:04d}").is_dir()]


def test_train_merges_train_and_val(sysu_tree):
    dataset = sysu.load(sysu_tree)
    ids = ids_of(sysu_tree, "train", "val")
    assert dataset.identities.tolist() == ids
    assert dataset.num_labels == 8
    assert set(dataset.train.labels) == set(range(8))
    for path, label, camera, modality in zip(
        dataset.train.paths, dataset.train.labels, dataset.train.cams, dataset.train.modality, strict=True
    ):
        assert int(path.parent.name) == ids[label]
        assert path.parent.parent.name == f"cam{camera}"
        assert modality == (camera in (3, 6))
    assert len(dataset.train) == 3 * (4 * 8 + 2 * len(indoor_ids(sysu_tree, ids)))


def test_paths_are_sorted_as_strings_and_reading_is_repeatable(sysu_tree):
    first, second = sysu.load(sysu_tree), sysu.load(sysu_tree)
    for split in ("train", "query", "gallery"):
        paths = [str(path) for path in getattr(first, split).paths]
        assert paths == sorted(paths)
        assert paths == [str(path) for path in getattr(second, split).paths]
    assert all((a == b).all() for a, b in zip(first.trials, second.trials, strict=True))


def test_query_is_infrared_and_gallery_visible(sysu_tree):
    dataset = sysu.load(sysu_tree)
    ids = ids_of(sysu_tree, "test")
    assert set(dataset.query.cams) == {3, 6}
    assert set(dataset.gallery.cams) == {1, 2, 4, 5}
    assert len(dataset.query) == 8 * 2 * 3
    assert sorted(set(dataset.query.labels)) == ids
    assert (dataset.query.modality == 1).all()
    assert (dataset.gallery.modality == 0).all()


@pytest.mark.parametrize(("mode", "cameras"), [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
@pytest.mark.parametrize(("shots", "images"), [(1, 1), (10, 3)])
def test_published_trials(sysu_tree, mode, cameras, shots, images):
    dataset = sysu.load(sysu_tree, mode=mode, shots=shots)
    order = read_mat(sysu_tree / "exp" / "rand_perm_cam.mat")["rand_perm_cam"]
    assert len(dataset.trials) == 10
    for trial in range(10):
        gallery = dataset.trial_gallery(trial)
        got = {
            (int(c), int(i), int(p.stem)) for c, i, p in zip(gallery.cams, gallery.labels, gallery.paths, strict=True)
        }
        expected = {
            (camera, identity, int(number))
            for camera in cameras
            for identity in ids_of(sysu_tree, "test")
            for number in order[camera - 1, 0][identity - 1, 0][trial, :shots]
        }
        assert got == expected
        assert len(got) == len(gallery)
    per_identity = np.unique(gallery.labels, return_counts=True)[1]
    assert set(per_identity) <= {images * len(cameras), images * 2}
    assert (mode == "indoor") == (len(per_identity) < 8)  # some never enter the rooms


@pytest.mark.parametrize("shots", [1, 10])
def test_agw_draw_is_python_random_seeded_by_the_trial(sysu_tree, shots):
    import random

    dataset = sysu.load(sysu_tree, draw="agw", shots=shots)
    for trial in (0, 7):
        random.seed(trial)
        expected = []
        for identity in ids_of(sysu_tree, "test"):
            for camera in (1, 2, 4, 5):
                folder = sysu_tree / f"cam{camera}" / f"{identity:04d}"
                if folder.is_dir():
                    images = sorted(folder.iterdir())
                    some = min(shots, len(images))
                    expected += [random.choice(images)] if shots == 1 else random.sample(images, some)
        assert list(dataset.trial_gallery(trial).paths) == sorted(expected)


def test_published_permutation_rows_of_another_writer(sysu_copy):
    """Compressed, with double cells and more identities than images, as MATLAB may save it."""
    io = pytest.importorskip("scipy.io")
    path = sysu_copy / "exp" / "rand_perm_cam.mat"
    before = sysu.load(sysu_copy).trials
    io.savemat(path, {"rand_perm_cam": read_mat(path)["rand_perm_cam"]}, do_compression=True)
    assert all((a == b).all() for a, b in zip(before, sysu.load(sysu_copy).trials, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "outdoor"}, 'mode: expected "all" or "indoor", got \'outdoor\''),
        ({"shots": 5}, "shots: expected 1 or 10, got 5"),
        ({"draw": "mine"}, "draw: expected"),
    ],
)
def test_bad_arguments(sysu_tree, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sysu.load(sysu_tree, **options)


@pytest.mark.parametrize("missing", ["cam4", "exp/val_id.txt", "exp/rand_perm_cam.mat", "."])
def test_a_missing_file_is_named(sysu_copy, missing):
    path = sysu_copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        sysu.load(sysu_copy)


@pytest.mark.parametrize("text", ["1,2,x,4\n", "1;2\n", "1,,2"])
def test_a_malformed_identity_list_is_named_with_its_line(sysu_copy, text):
    path = sysu_copy / "exp" / "test_id.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{path}:1: expected comma-separated")):
        sysu.load(sysu_copy)


def test_an_empty_identity_list_is_named(sysu_copy):
    path = sysu_copy / "exp" / "test_id.txt"
    path.write_text("")
    with pytest.raises(ValueError, match=re.escape(f"{path}:1: the list is empty")):
        sysu.load(sysu_copy)


def test_an_identity_list_may_end_in_a_comma(sysu_copy):
    path = sysu_copy / "exp" / "test_id.txt"
    before = len(sysu.load(sysu_copy).query)
    path.write_text(path.read_text().strip() + ",")
    assert len(sysu.load(sysu_copy).query) == before


def test_an_identity_without_images_is_named(sysu_copy):
    path = sysu_copy / "exp" / "train_id.txt"
    path.write_text(path.read_text().strip() + ",99")
    with pytest.raises(ValueError, match=re.escape(f"{path}:1: identity 99 has no image")):
        sysu.load(sysu_copy)


def test_a_permutation_of_a_deleted_image_is_named(sysu_copy):
    identity = ids_of(sysu_copy, "test")[0]
    image = sysu_copy / "cam4" / f"{identity:04d}" / "0002.jpg"
    image.unlink()
    with pytest.raises(ValueError, match=re.escape(str(image))):
        sysu.load(sysu_copy, shots=10)


def test_images_must_be_numbered_for_the_published_draw(sysu_copy):
    identity = ids_of(sysu_copy, "test")[0]
    image = sysu_copy / "cam4" / f"{identity:04d}" / "0002.jpg"
    image.rename(image.with_name("second.jpg"))
    with pytest.raises(ValueError, match=r"second\.jpg: expected a number"):
        sysu.load(sysu_copy)


def test_permutations_of_the_wrong_shape_are_named(sysu_copy):
    path = sysu_copy / "exp" / "rand_perm_cam.mat"
    order = read_mat(path)["rand_perm_cam"]
    write_mat(path, {"rand_perm_cam": order[:5]})
    with pytest.raises(ValueError, match="expected a 6 x 1 cell"):
        sysu.load(sysu_copy)
    identity = ids_of(sysu_copy, "test")[0]
    order[3, 0][identity - 1, 0] = np.ones((4, 3), np.uint8)
    write_mat(path, {"rand_perm_cam": order})
    with pytest.raises(ValueError, match=re.escape(f"{path}: camera 4, identity {identity}: expected 10 x n")):
        sysu.load(sysu_copy)
