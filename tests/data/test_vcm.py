import random
import re

import numpy as np
import pytest
import torch

from vifast.data import vcm
from vifast.retrieval import protocols


def tracks_of(root, part):
    return [tuple(map(int, line.split())) for line in (root / "info" / f"track_{part}_info.txt").open()]


def edit_track(root, number, change, part="test"):
    path = root / "info" / f"track_{part}_info.txt"
    lines = path.read_text().splitlines()
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines) + "\n")
    return path


def test_splits_and_tracklets(vcm_tree):
    dataset = vcm.load(vcm_tree)
    assert dataset.num_labels == 5
    for part, samples in (("train", dataset.train), ("test", dataset.query), ("test", dataset.gallery)):
        names = (vcm_tree / "info" / f"{part}_name.txt").read_text().splitlines()
        tracks = tracks_of(vcm_tree, part)
        for number in np.unique(samples.tracklets):
            code, first, last, identity, camera = tracks[number - 1]
            rows = np.flatnonzero(samples.tracklets == number)
            assert (np.diff(rows) == 1).all()
            frames = [str(samples.paths[row].relative_to(vcm_tree)) for row in rows]
            assert frames == names[first - 1 : last]
            assert set(samples.cams[rows]) == {camera}
            assert set(samples.modality[rows]) == {int(code == 1)}
            labels = dataset.identities[samples.labels[rows]] if part == "train" else samples.labels[rows]
            assert set(labels) == {identity}
    assert set(np.unique(dataset.train.tracklets)) == set(range(1, 31))
    queries = [int(word) for word in (vcm_tree / "info" / "query_IDX.txt").read_text().split()]
    assert sorted(set(dataset.query.tracklets)) == queries
    assert (dataset.query.modality == 1).all()
    assert (dataset.gallery.modality == 0).all()
    assert [trial.tolist() for trial in dataset.trials] == [list(range(len(dataset.gallery)))]
    assert dataset.trial_gallery(0).tracklets.tolist() == dataset.gallery.tracklets.tolist()
    assert vcm.load(vcm_tree, direction="v2i").query.paths == dataset.gallery.paths


def test_by_image_the_first_frames_of_long_tracklets_are_compared(vcm_tree):
    whole, images = vcm.load(vcm_tree), vcm.load(vcm_tree, min_frames=4, level="image")
    for side, chosen in ((whole.query, images.query), (whole.gallery, images.gallery)):
        numbers, first, frames = np.unique(side.tracklets, return_index=True, return_counts=True)
        assert 0 < len(chosen) < len(numbers)
        assert chosen.paths == tuple(side.paths[row] for row in sorted(first[frames >= 4]))
    assert images.trials[0].tolist() == list(range(len(images.gallery)))
    feat = [torch.randn(len(side), 4, generator=torch.manual_seed(0)) for side in (whole.gallery, whole.query)]
    rows = [
        [side.paths.index(path) for path in part.paths]
        for side, part in ((whole.gallery, images.gallery), (whole.query, images.query))
    ]
    labels = [side.labels for side in (whole.gallery, whole.query)]
    tracklets = {"visible_tracklets": whole.gallery.tracklets, "infrared_tracklets": whole.query.tracklets}
    by_protocol = protocols.vcm(*feat, *labels, **tracklets, level="image", min_frames=4, direction="i2v")
    given = [side[chosen] for sides in (feat, labels) for side, chosen in zip(sides, rows, strict=True)]
    as_given = protocols.vcm(*given, level="image", direction="i2v")
    assert as_given.scalars() == by_protocol.scalars()
    assert as_given.protocol.startswith("HITSZ-VCM, image level, frames as given")
    with pytest.raises(ValueError, match="min_frames: no test tracklet has 9 frames"):
        vcm.load(vcm_tree, min_frames=9, level="image")
    with pytest.raises(ValueError, match="level: expected one of tracklet, image, got 'video'"):
        vcm.load(vcm_tree, level="video")


def test_frames_are_drawn_as_ckda_draws(vcm_tree):
    """Long tracklets only, Python's generator seeded with 0, infrared tracklets before visible ones."""
    full, drawn = vcm.load(vcm_tree).train, vcm.load(vcm_tree, frames=3, min_frames=4).train
    generator = random.Random(0)
    expected = []
    for modality in (1, 0):
        for number in np.unique(full.tracklets[full.modality == modality]):
            frames = [full.paths[row] for row in np.flatnonzero(full.tracklets == number)]
            expected += generator.sample(frames, 3) if len(frames) >= 4 else []
    assert sorted(drawn.paths) == sorted(expected)
    assert set(np.unique(drawn.tracklets, return_counts=True)[1]) == {3}
    assert len(expected) < 3 * 30  # some are too short


def test_counts(vcm_tree):
    counts = vcm.load(vcm_tree, frames=2, min_frames=2).counts
    assert counts["train tracklets"] == 30  # of the dataset, not of what was drawn
    assert counts["test infrared tracklets"] == counts["test visible tracklets"] == 9
    assert counts["test infrared tracklets of 12 frames"] == 0


@pytest.mark.parametrize("options", [{"level": "tracklet"}, {"level": "image", "min_frames": 4}])
def test_the_protocol_takes_what_the_reader_gives(vcm_tree, options):
    dataset = vcm.load(vcm_tree)
    sides = (dataset.gallery, dataset.query)
    features = [torch.nn.functional.one_hot(torch.from_numpy(side.labels), 9).float() for side in sides]
    result = protocols.vcm(
        *features,
        *(side.labels for side in sides),
        *(side.cams for side in sides),
        visible_tracklets=sides[0].tracklets,
        infrared_tracklets=sides[1].tracklets,
        direction="i2v",
        topk=3,
        **options,
    )
    assert result.rank1 == 1.0
    long = [track for track in tracks_of(vcm_tree, "test") if track[0] != 1 and track[2] - track[1] == 3]
    assert result.sizes == ((9,) if options["level"] == "tracklet" else (len(long),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "x"}, "direction: expected one of v2i, i2v, got 'x'"),
        ({"frames": 0}, "frames: expected an integer >= 1, got 0"),
        ({"min_frames": 0}, "min_frames: expected an integer >= 1, got 0"),
        ({"frames": 3}, "frames: expected at most min_frames (1), got 3"),
        ({"min_frames": 99}, "min_frames: no training tracklet has 99 frames"),
    ],
)
def test_bad_arguments(vcm_tree, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        vcm.load(vcm_tree, **options)


@pytest.mark.parametrize("missing", ["train_name", "track_test_info", "query_IDX"])
def test_a_missing_file_is_named(vcm_copy, missing):
    path = vcm_copy / "info" / f"{missing}.txt"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"HITSZ-VCM: file not found: {path}")):
        vcm.load(vcm_copy)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 1 4 7", "expected five numbers, `modality first last identity camera`, got '1 1 4 7'"),
        ("1 1 4 7 x", "expected five numbers"),
        ("5 1 4 7 1", "modality: expected 1 for infrared, 0 or 2 for visible, got 5"),
        ("1 0 4 7 1", "expected frames within the 64 lines of test_name.txt, got 0 to 4"),
        ("1 4 3 7 1", "expected frames within the 64 lines of test_name.txt, got 4 to 3"),
        ("1 60 65 7 1", "expected frames within the 64 lines of test_name.txt, got 60 to 65"),
        ("2 1 4 7 1", "modality 2 is visible, but has the frame Test/"),
    ],
)
def test_a_malformed_tracklet_is_named(vcm_copy, line, message):
    path = edit_track(vcm_copy, 3, lambda _: line)
    with pytest.raises(ValueError, match=re.escape(f"{path}:3: {message}")):
        vcm.load(vcm_copy)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("99", "expected lines of track_test_info.txt that name a tracklet, got '99'"),
        ("one", "expected lines of track_test_info.txt that name a tracklet, got 'one'"),
        ("4", "query 4 is a visible tracklet: "),
    ],
)
def test_a_query_that_is_none_is_named(vcm_copy, words, message):
    path = vcm_copy / "info" / "query_IDX.txt"
    path.write_text(f"{path.read_text()}{words}\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: {message}")):
        vcm.load(vcm_copy)


def test_an_infrared_tracklet_that_is_no_query_is_named(vcm_copy):
    path = vcm_copy / "info" / "query_IDX.txt"
    path.write_text(path.read_text().removeprefix("1 "))
    tracks = vcm_copy / "info" / "track_test_info.txt"
    with pytest.raises(ValueError, match=re.escape(f"{tracks}:1: an infrared tracklet that is no query of {path}")):
        vcm.load(vcm_copy)
    dataset = vcm.load(vcm_copy, on_damage="skip")
    assert 1 not in dataset.query.tracklets
    assert len(dataset.damage) == 1
