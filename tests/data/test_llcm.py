import random
import re
import shutil

import numpy as np
import pytest
import torch

from vifast.data import llcm
from vifast.retrieval import protocols


def ids_of(root):
    return [int(word) for word in (root / "idx" / "test_id.txt").read_text().split(",")]


@pytest.mark.parametrize("layout", ["lists", "folders"])
def test_splits_in_either_layout(llcm_tree, layout):
    dataset = llcm.load(llcm_tree, layout=layout)
    assert dataset.identities.tolist() == [i for i in range(1, 13) if i not in ids_of(llcm_tree)]
    assert (dataset.query.modality == 1).all()
    assert (dataset.gallery.modality == 0).all()
    assert sorted(set(dataset.query.labels)) == sorted(set(dataset.gallery.labels)) == ids_of(llcm_tree)
    assert len(dataset.gallery) == 5 * 3 * 2
    assert 3 not in dataset.query.cams
    for part in (dataset.train, dataset.query, dataset.gallery):
        for path, camera, modality in zip(part.paths, part.cams, part.modality, strict=True):
            assert f"_c{camera:02d}_" in path.name
            assert path.stem.endswith(("_vis", "_nir")[modality])
            assert path.is_file()


def test_both_layouts_have_the_same_images(llcm_tree):
    lists, folders = (llcm.load(llcm_tree, layout=layout) for layout in ("lists", "folders"))
    for part in ("query", "gallery"):
        first, second = getattr(lists, part), getattr(folders, part)
        assert sorted(path.name for path in first.paths) == sorted(path.name for path in second.paths)
        assert sorted(zip(first.labels, first.cams, strict=True)) == sorted(
            zip(second.labels, second.cams, strict=True)
        )
    assert lists.counts == folders.counts
    assert [str(path) for path in folders.gallery.paths] == sorted(str(path) for path in folders.gallery.paths)


def test_the_layout_is_found(llcm_copy):
    assert llcm.layouts(llcm_copy) == ("lists", "folders")
    assert "test_vis" in str(llcm.load(llcm_copy).gallery.paths[0])
    for name in ("test_vis", "test_nir", "idx/test_id.txt"):
        path = llcm_copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert llcm.layouts(llcm_copy) == ("lists",)
    assert llcm.load(llcm_copy).gallery.paths[0].parents[1].name == "vis"


def test_training_labels_follow_the_lists(llcm_copy):
    """The lists may number identities in another order than their folders."""
    for kind in ("vis", "nir"):
        path = llcm_copy / "idx" / f"train_{kind}.txt"
        path.write_text(re.sub(r" (\d+)$", lambda match: f" {6 - int(match[1])}", path.read_text(), flags=re.M))
    dataset = llcm.load(llcm_copy)
    assert dataset.identities.tolist() == sorted(dataset.identities.tolist(), reverse=True)
    for path, label in zip(dataset.train.paths, dataset.train.labels, strict=True):
        assert int(path.parent.name) == dataset.identities[label]


def test_trials_are_the_benchmarks(llcm_tree):
    dataset = llcm.load(llcm_tree)
    assert len(dataset.trials) == 10
    for trial in (0, 7):
        generator = random.Random(trial)
        expected = []
        for identity in sorted(set(dataset.gallery.labels.tolist())):
            for camera in range(1, 10):
                rows = np.flatnonzero((dataset.gallery.labels == identity) & (dataset.gallery.cams == camera)).tolist()
                expected += [generator.choice(rows)] if rows else []
        assert dataset.trials[trial].tolist() == sorted(expected)
    assert [trial.tolist() for trial in llcm.load(llcm_tree, draw="whole").trials] == [list(range(30))]


def test_directions_swap_query_and_gallery(llcm_tree):
    forth, back = llcm.load(llcm_tree, direction="v2i"), llcm.load(llcm_tree, direction="i2v")
    assert forth.query.paths == back.gallery.paths
    assert forth.gallery.paths == back.query.paths


@pytest.mark.parametrize("protocol", ["benchmark", "ckda", "idkl"])
def test_the_protocols_take_what_the_reader_gives(llcm_tree, protocol):
    dataset = llcm.load(llcm_tree)
    sides = (dataset.gallery, dataset.query)
    features = [torch.nn.functional.one_hot(torch.from_numpy(side.labels), 13).float() for side in sides]
    labels = (*(side.labels for side in sides), *(side.cams for side in sides))
    result = protocols.llcm(*features, *labels, direction="i2v", protocol=protocol, topk=3)
    assert result.rank1 == 1.0
    if protocol != "idkl":
        assert result.sizes == tuple(len(trial) for trial in dataset.trials)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "x"}, "direction: expected one of v2i, i2v, got 'x'"),
        ({"draw": "agw"}, "draw: expected one of random, whole, got 'agw'"),
        ({"layout": "x"}, "layout: expected one of auto, lists, folders, got 'x'"),
        ({"on_damage": "ignore"}, "on_damage: expected one of error, skip, got 'ignore'"),
    ],
)
def test_bad_arguments(llcm_tree, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        llcm.load(llcm_tree, **options)


@pytest.mark.parametrize("missing", ["idx/train_nir.txt", "idx/test_id.txt", "test_vis/cam4", "test_nir", "."])
def test_a_missing_file_is_named(llcm_copy, missing):
    path = llcm_copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        llcm.load(llcm_copy)


def prepend(path, line):
    path.write_text(f"{line}\n{path.read_text()}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("vis/0001/a_c01_.jpg", "expected `relative/path label`"),
        ("vis/x/a_c01_.jpg 0", "expected an identity number as folder of the image, got 'vis/x/a_c01_.jpg'"),
        ("vis/0001/a.jpg 0", "expected _c{camera}_ in the file name, one of 1..9"),
        ("vis/0001/a_c10_.jpg 0", "expected _c{camera}_ in the file name"),
    ],
)
def test_a_malformed_line_is_named(llcm_copy, line, message):
    path = llcm_copy / "idx" / "train_vis.txt"
    prepend(path, line)
    with pytest.raises(ValueError, match=re.escape(f"{path}:1: {message}")):
        llcm.load(llcm_copy)


def test_an_identity_has_one_label_and_a_label_one_identity(llcm_copy):
    path = llcm_copy / "idx" / "train_nir.txt"
    before, first = path.read_text(), llcm.load(llcm_copy).identities
    path.write_text(re.sub(r" 0$", " 9", before, count=1, flags=re.M))
    message = f"{path}:1: identity {first[0]} has the label 9 here and 0 further up"
    with pytest.raises(ValueError, match=re.escape(message)):
        llcm.load(llcm_copy)
    path = llcm_copy / "idx" / "train_vis.txt"
    path.write_text(re.sub(r" 1$", " 0", path.read_text(), flags=re.M))
    message = f": identity {first[1]} has the label 0, which is that of identity {first[0]}"
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}:\d+{re.escape(message)}"):
        llcm.load(llcm_copy)
