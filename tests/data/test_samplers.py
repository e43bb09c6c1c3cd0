import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vifast.data import CrossModalSampler


def columns(counts):
    """Labels and modality with counts[i] = (visible, infrared) images of identity 10 * i."""
    rows = [(10 * i, m) for i, pair in enumerate(counts) for m, n in enumerate(pair) for _ in range(n)]
    return np.array(rows, dtype=np.int64).T


pairs = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=6)


@given(pairs, st.data(), st.integers(0, 3))
def test_every_batch_is_p_identities_k_images_of_each_modality(counts, data, epoch):
    labels, modality = columns(counts)
    num_ids = data.draw(st.integers(1, len(counts)))
    num_instances = data.draw(st.integers(1, 5))
    sampler = CrossModalSampler(labels, modality, num_ids=num_ids, num_instances=num_instances)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) >= 1
    for batch in batches:
        grid = np.array(batch).reshape(num_ids, num_instances, 2)
        assert (modality[grid] == [1, 0]).all()
        assert (labels[grid] == labels[grid[:, :1, :1]]).all()
        assert len(set(labels[grid[:, 0, 0]])) == num_ids
        for identity in grid:
            for column, m in ((0, 1), (1, 0)):
                have = ((labels == labels[identity[0, 0]]) & (modality == m)).sum()
                # Shuffled rounds follow each other across batches, so a seam may bring an image once more.
                most = np.unique(identity[:, column], return_counts=True)[1].max()
                assert most <= -(-num_instances // have) + 1


@given(st.integers(2, 5), st.integers(0, 2**31), st.integers(0, 100))
def test_an_epoch_is_a_function_of_seed_and_epoch(num_ids, seed, epoch):
    labels, modality = columns([(4, 3)] * 5)

    def batches(seed, epoch):
        sampler = CrossModalSampler(labels, modality, num_ids=num_ids, num_instances=2, num_batches=4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(seed, epoch) == batches(seed, epoch)
    assert batches(seed, epoch) != batches(seed, epoch + 1)
    assert batches(seed, epoch) != batches(seed + 1, epoch)


def test_iterating_twice_repeats_the_epoch():
    labels, modality = columns([(4, 4)] * 4)
    sampler = CrossModalSampler(labels, modality, num_ids=2, num_instances=2)
    assert list(sampler) == list(sampler)


def test_an_epoch_takes_the_larger_modality_once():
    labels, modality = columns([(8, 4)] * 6)
    sampler = CrossModalSampler(labels, modality, num_ids=3, num_instances=4)
    assert len(sampler) == 6 * 8 // (3 * 4)
    seen = Counter(index for batch in sampler for index in batch)
    assert all(seen[index] == 1 for index in np.flatnonzero(modality == 0))
    assert all(seen[index] == 2 for index in np.flatnonzero(modality == 1))


def test_identities_left_over_by_a_round_are_not_starved():
    labels, modality = columns([(2, 2)] * 5)
    sampler = CrossModalSampler(labels, modality, num_ids=4, num_instances=2, num_batches=200)
    visits = Counter(label for batch in sampler for label in set(labels[batch]))
    assert min(visits.values()) > 120  # 160 on average


def test_images_repeat_within_a_batch_only_where_an_identity_has_too_few():
    labels, modality = columns([(1, 5)])
    batch = next(iter(CrossModalSampler(labels, modality, num_ids=1, num_instances=4)))
    assert len(set(batch[0::2])) == 4
    assert len(set(batch[1::2])) == 1


def test_takes_tensors_and_lists():
    labels, modality = columns([(2, 2)] * 3)
    options = {"num_ids": 2, "num_instances": 1}
    expected = list(CrossModalSampler(labels, modality, **options))
    assert list(CrossModalSampler(torch.from_numpy(labels), torch.from_numpy(modality).int(), **options)) == expected
    assert list(CrossModalSampler(labels.tolist(), modality.tolist(), **options)) == expected


@pytest.mark.parametrize(
    ("labels", "modality", "options", "message"),
    [
        ([0, 0, 5, 5], [0, 1, 0, 0], {}, "labels: identity 5 has no infrared image"),
        ([0, 0, 5, 5], [0, 1, 1, 1], {}, "labels: identity 5 has no visible image"),
        ([0, 0], [0, 1], {"num_ids": 2}, "num_ids: expected at most 1, the identities in labels, got 2"),
        ([0, 0], [0, 1], {"num_ids": 0}, "num_ids: expected at least 1, got 0"),
        ([0, 0], [0, 1], {"num_instances": 0}, "num_instances: expected at least 1, got 0"),
        ([0, 0], [0, 1], {"seed": -1}, "seed: expected at least 0, got -1"),
        ([0, 0], [0, 1], {"num_batches": 0}, "num_batches: expected at least 1, got 0"),
        ([0, 0], [0, 3], {}, "modality: expected 0 or 1, got 3"),
        ([0, 0], [0, 1, 1], {}, "modality: expected shape (2,) as labels, got (3,)"),
        ([], [], {}, "labels: expected a non-empty column of integers"),
        ([0.5, 1.0], [0, 1], {}, "labels: expected a non-empty column of integers"),
        ([[0, 1]], [0, 1], {}, "labels: expected a non-empty column of integers"),
    ],
)
def test_bad_arguments(labels, modality, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CrossModalSampler(labels, modality, **({"num_ids": 1, "num_instances": 1} | options))
