"""Which protocol a dataset is scored by."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vifast.data.records import Dataset, Samples
from vifast.retrieval import protocols
from vifast.train.config import DatasetConfig
from vifast.train.evaluate import score


def side(seed, count, cams, modality):
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(count // 2), 2)  # tracklets of two frames
    labels, cameras = rng.integers(0, 4, count)[of], rng.choice(cams, count)[of]
    feat = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(count, 6))).float())
    return feat, Samples(tuple("x" * count), labels, cameras, np.full(count, modality), of)


def dataset(name, query, gallery, trials=None):
    trials = (np.arange(len(gallery)),) if trials is None else trials
    return Dataset(name, None, query, query, gallery, np.arange(4), tuple(trials))


@pytest.fixture
def both():
    (v_feat, v), (i_feat, i) = side(0, 60, [1, 2, 4, 5], 0), side(1, 40, [3, 6], 1)
    return SimpleNamespace(v_feat=v_feat, v=v, i_feat=i_feat, i=i, sides=(v_feat, i_feat, v.labels, i.labels))


def same(found, expected):
    assert found.to_dict() == expected.to_dict()


@pytest.mark.parametrize("rerank", [None, {"k1": 5, "k2": 2}])
def test_sysu(both, rerank):
    trials = [np.arange(t, 60, 3) for t in range(3)]
    found = score(both.i_feat, both.v_feat, dataset("SYSU-MM01", both.i, both.v, trials), DatasetConfig(), rerank)
    labels = (both.i.labels, both.v.labels, both.i.cams, both.v.cams)
    same(found, protocols.sysu(both.i_feat, both.v_feat, *labels, draw=trials, rerank=rerank))
    assert len(found.trials) == 3


@pytest.mark.parametrize("direction", ["v2i", "i2v"])
@pytest.mark.parametrize("name", ["RegDB", "LLCM", "HITSZ-VCM"])
def test_both_directions(both, name, direction):
    sides = [(both.v_feat, both.v), (both.i_feat, both.i)]
    (query, q), (gallery, g) = sides if direction == "v2i" else sides[::-1]
    found = score(query, gallery, dataset(name, q, g), DatasetConfig())
    cams = (both.v.cams, both.i.cams)
    tracklets = {"visible_tracklets": both.v.tracklets, "infrared_tracklets": both.i.tracklets}
    same(
        found,
        {
            "RegDB": lambda: protocols.regdb(*both.sides, direction=direction),
            "LLCM": lambda: protocols.llcm(*both.sides, direction=direction, protocol="idkl"),
            "HITSZ-VCM": lambda: protocols.vcm(*both.sides, *cams, **tracklets, direction=direction),
        }[name](),
    )


def test_a_variant_by_its_name(both):
    options = DatasetConfig(name="llcm", protocol="ckda")
    found = score(both.i_feat, both.v_feat, dataset("LLCM", both.i, both.v, [np.arange(9)] * 10), options)
    cams = (both.v.cams, both.i.cams)
    same(found, protocols.llcm(*both.sides, *cams, direction="i2v", protocol="ckda"))
    options = DatasetConfig(name="vcm", protocol="vi-lreid", level="image")
    found = score(both.i_feat, both.v_feat, dataset("HITSZ-VCM", both.i, both.v), options)
    same(found, protocols.vcm(*both.sides, *cams, level="image", direction="i2v", protocol="vi-lreid"))


def test_llcms_ten_trials_are_the_benchmarks(both):
    found = score(both.i_feat, both.v_feat, dataset("LLCM", both.i, both.v, [np.arange(9)] * 10), DatasetConfig())
    same(found, protocols.llcm(*both.sides, both.v.cams, both.i.cams, direction="i2v"))
