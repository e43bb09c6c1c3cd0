import re
from collections import Counter

import numpy as np
import pytest

from vifast.data import ReplacementSampler


def spread(total, identities):
    """How many of `total` images each identity has."""
    return np.full(identities, total // identities) + (np.arange(identities) < total % identities)


def columns(identities, visible, infrared):
    labels = np.concatenate([np.repeat(np.arange(identities), spread(n, identities)) for n in (visible, infrared)])
    return labels, np.repeat([0, 1], [visible, infrared])


@pytest.mark.parametrize(
    ("identities", "visible", "infrared", "count", "batches"),
    [
        pytest.param(206, 2060, 2060, 4, 65, id="RegDB, CKDA"),
        pytest.param(206, 2060, 2060, 5, 52, id="RegDB, DAKD"),
        pytest.param(395, 22258, 11909, 4, 696, id="SYSU-MM01"),
        pytest.param(500, 12139, 9857, 4, 380, id="LLCM"),
        pytest.param(500, 16380, 12873, 4, 512, id="HITSZ-VCM"),
    ],
)
def test_batches_of_an_epoch(identities, visible, infrared, count, batches):
    labels, modality = columns(identities, visible, infrared)
    assert len(ReplacementSampler(labels, modality, num_ids=8, num_instances=count)) == batches


def test_a_batch_in_both_layouts():
    labels, modality = columns(20, 60, 45)
    options = {"num_ids": 8, "num_instances": 4, "seed": 3}
    halves = np.array(list(ReplacementSampler(labels, modality, **options)))
    for batch in halves:
        assert (modality[batch] == np.repeat([0, 1], 32)).all()
        people = labels[batch].reshape(2, 8, 4)
        assert (people == people[:1, :, :1]).all()
        assert len(set(people[0, :, 0])) == 8
    turned = np.array(list(ReplacementSampler(labels, modality, **options, layout="alternating")))
    assert (turned.reshape(-1, 8, 4, 2)[..., ::-1].transpose(0, 3, 1, 2).reshape(len(halves), -1) == halves).all()


def test_draws_are_uniform_and_with_replacement():
    labels, modality = columns(4, 20, 12)
    sampler = ReplacementSampler(labels, modality, num_ids=2, num_instances=4, num_batches=4000)
    batches = np.array(list(sampler))
    images = np.bincount(batches.reshape(-1), minlength=32)
    assert abs(images[:20] - 4000 * 8 / 20).max() < 5 * np.sqrt(4000 * 8 / 20)  # five standard deviations
    assert abs(images[20:] - 4000 * 8 / 12).max() < 5 * np.sqrt(4000 * 8 / 12)
    distinct = Counter(len(set(four)) for four in batches[:, :4].tolist())  # of 4 draws from 5 images
    expected = {1: 5 / 625, 2: 140 / 625, 3: 360 / 625, 4: 120 / 625}
    for number, share in expected.items():
        assert abs(distinct[number] / 4000 - share) < 5 * np.sqrt(share * (1 - share) / 4000)
    pairs = Counter(frozenset(labels[batch].tolist()) for batch in batches)
    assert len(pairs) == 6
    assert all(abs(count / 4000 - 1 / 6) < 5 * np.sqrt(5 / 36 / 4000) for count in pairs.values())


def test_one_image_is_enough():
    sampler = ReplacementSampler([5, 5], [0, 1], num_ids=1, num_instances=3)
    assert list(sampler) == [[0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (([5, 5], [0, 0]), {}, "labels: identity 5 has no infrared image"),
        (([5, 5], [0, 1]), {"num_ids": 2}, "num_ids: expected at most 1"),
        (([5, 5], [0, 1]), {"layout": "mixed"}, "layout: expected one of halves, alternating, got 'mixed'"),
        (([5, 5], [0, 1]), {"num_batches": 0}, "num_batches: expected at least 1, got 0"),
    ],
)
def test_bad_arguments(columns, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ReplacementSampler(*columns, **{"num_ids": 1, "num_instances": 1} | options)
