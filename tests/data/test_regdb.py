import re
import shutil

import pytest

from vifast.data import regdb


@pytest.mark.parametrize("split", [1, 10])
def test_splits(regdb_tree, split):
    dataset = regdb.load(regdb_tree, split=split)
    lines = (regdb_tree / "idx" / f"train_visible_{split}.txt").read_text().splitlines()
    assert dataset.identities.tolist() == sorted({int(line.split("/")[1]) for line in lines})
    assert len(dataset.train) == 4 * 2 * 2
    assert [len(part) for part in (dataset.query, dataset.gallery)] == [8, 8]
    assert set(dataset.query.labels) == set(dataset.gallery.labels)
    assert not set(dataset.query.labels) & set(dataset.identities)
    assert set(zip(dataset.train.cams.tolist(), dataset.train.modality.tolist(), strict=True)) == {(2, 0), (3, 1)}
    assert [trial.tolist() for trial in dataset.trials] == [list(range(8))]


def test_training_labels_are_contiguous_and_shared_by_the_modalities(regdb_tree):
    dataset = regdb.load(regdb_tree)
    for path, label in zip(dataset.train.paths, dataset.train.labels, strict=True):
        assert int(path.parent.name) == dataset.identities[label]


def test_directions_swap_query_and_gallery(regdb_tree):
    forth, back = regdb.load(regdb_tree, direction="v2i"), regdb.load(regdb_tree, direction="i2v")
    assert (forth.query.modality == 0).all()
    assert forth.query.paths == back.gallery.paths
    assert forth.gallery.paths == back.query.paths


def test_the_identity_is_the_folder_not_the_label_column(regdb_copy):
    path = regdb_copy / "idx" / "test_visible_1.txt"
    before = regdb.load(regdb_copy).query.labels
    path.write_text(re.sub(r" \d+$", " 77", path.read_text(), flags=re.M))
    assert (regdb.load(regdb_copy).query.labels == before).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 0}, "split: expected 1..10, got 0"),
        ({"split": 11}, "split: expected 1..10, got 11"),
        ({"direction": "x"}, 'direction: expected "v2i" or "i2v", got \'x\''),
    ],
)
def test_bad_arguments(regdb_tree, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        regdb.load(regdb_tree, **options)


@pytest.mark.parametrize("missing", ["idx/test_thermal_1.txt", "idx", "."])
def test_a_missing_list_is_named(regdb_copy, missing):
    path = regdb_copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        regdb.load(regdb_copy)


@pytest.mark.parametrize("line", ["Visible/1/a.bmp", "Visible/1/a.bmp one", "7"])
def test_a_malformed_line_is_named(regdb_copy, line):
    path = regdb_copy / "idx" / "train_visible_1.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", line, *lines[1:]]))
    with pytest.raises(ValueError, match=re.escape(f"{path}:3: expected `relative/path label`, got {line!r}")):
        regdb.load(regdb_copy)


def test_an_image_outside_an_identity_folder_is_named(regdb_copy):
    path = regdb_copy / "idx" / "train_visible_1.txt"
    path.write_text("Visible/a.bmp 0\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}:1: expected an identity number")):
        regdb.load(regdb_copy)


def test_a_listed_image_that_is_missing_is_named(regdb_copy):
    path = regdb_copy / "idx" / "test_thermal_1.txt"
    image = regdb_copy / path.read_text().splitlines()[2].split(" ")[0]
    image.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{path}:3: image not found: {image}")):
        regdb.load(regdb_copy)


def test_an_empty_list_is_named(regdb_copy):
    path = regdb_copy / "idx" / "train_thermal_1.txt"
    path.write_text("\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}:1: the list is empty")):
        regdb.load(regdb_copy)
