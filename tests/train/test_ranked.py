"""Ranked lists: what a run finds, keeps by name, and shows again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from vifast.data import Dataset
from vifast.data.records import Samples
from vifast.train.config import DatasetConfig
from vifast.train.evaluate import Evaluation, score
from vifast.train.ranked import RankedNames, load_ranked, rank_queries, save_ranked

ROOT = Path("root")


def samples(names, labels, cams, modality, tracklets=None):
    columns = [np.array(column) for column in (labels, cams, [modality] * len(labels))]
    tracklets = None if tracklets is None else np.array(tracklets)
    return Samples(tuple(ROOT / "cam" / name for name in names), *columns, tracklets)


def evaluated(name, query, gallery, found, feat):
    dataset = Dataset(name, ROOT, query, query, gallery, np.array([7]), (np.arange(len(gallery)),))
    found, feat = torch.tensor(found), normalize(torch.tensor(feat))
    return Evaluation(score(found, feat, dataset, DatasetConfig()), found, feat), dataset


def test_follow_distance_and_leave_out_what_the_protocol_leaves_out():
    gallery = samples("abc", [7, 8, 7], [2, 1, 4], 0)
    feat = [[1.0, 0.1], [1.0, 0.2], [1.0, 0.4]]
    ranked = rank_queries(*evaluated("SYSU-MM01", samples("q", [7], [3], 1), gallery, [[1.0, 0.0]], feat))
    # camera 3 does not search camera 2
    assert ranked == [RankedNames("cam/q", 7, ["cam/b", "cam/c"], [False, True])]


def test_tracklets_are_ranked_by_their_means_and_shown_by_their_first_frames():
    query = samples("pq", [7, 7], [1, 1], 1, [0, 0])
    gallery = samples("abcd", [8, 8, 7, 7], [1, 1, 2, 2], 0, [0, 0, 1, 1])
    feat = [[1.0, 0.0], [-1.0, 0.1], [1.0, 0.3], [1.0, 0.5]]  # a is nearest, its tracklet is not
    ranked = rank_queries(*evaluated("HITSZ-VCM", query, gallery, [[1.0, 0.0], [1.0, 0.1]], feat))
    assert ranked == [RankedNames("cam/p", 7, ["cam/c", "cam/a"], [True, False])]


def test_are_kept_and_shown_again(tmp_path):
    ranked = [RankedNames("q.png", 7, ["a.png"], [True])]
    assert load_ranked(tmp_path) == []
    save_ranked(tmp_path, ranked)
    assert load_ranked(tmp_path) == ranked
    for name, value in (("q.png", 10), ("a.png", 20)):
        Image.new("RGB", (4, 8), (value, 0, 0)).save(tmp_path / name)
    shown = ranked[0].pictures(tmp_path)
    assert [image.shape for image in (shown.image, *shown.gallery)] == [(128, 64, 3)] * 2
    assert [int(image[0, 0, 0]) for image in (shown.image, *shown.gallery)] == [10, 20]
    assert (shown.hits, shown.label) == ([True], "person 7")
    with pytest.raises(FileNotFoundError):
        ranked[0].pictures(tmp_path / "elsewhere")


@pytest.mark.parametrize("text", ["{", "[1]", '[{"query": "q"}]', '{"a": 1}'])
def test_damaged_file_is_named(tmp_path, text):
    (tmp_path / "ranked.json").write_text(text)
    with pytest.raises(ValueError, match=r"ranked\.json: not the ranked lists of a run"):
        load_ranked(tmp_path)
