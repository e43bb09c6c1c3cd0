import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vifast.data import IdklSampler

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_sampler.npz"


def columns(counts):
    """Labels and modality with counts[i] = (visible, infrared) images of identity 10 * i."""
    rows = [(10 * i, m) for i, pair in enumerate(counts) for m, n in enumerate(pair) for _ in range(n)]
    return np.array(rows, dtype=np.int64).T


def golden(case):
    with np.load(GOLDEN) as data:
        num_ids, count = (int(n) for n in data[f"{case}__PK"])
        infrared = np.isin(data[f"{case}__cams"], (3, 6)).astype(int)
        options = {"num_ids": num_ids, "num_instances": count // 2, "seed": int(data[f"{case}__np_seed"])}
        streams = [data[f"{case}__epoch{epoch}"].reshape(-1, num_ids * count).tolist() for epoch in (1, 2)]
        return (data[f"{case}__ids"], infrared), options, streams


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1,), (0, 1, 0)])
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_golden(case, order):
    columns, options, streams = golden(case)
    sampler = IdklSampler(*columns, **options)
    for epoch in order:
        sampler.set_epoch(epoch)
        assert len(sampler) == len(streams[epoch])
        assert list(sampler) == streams[epoch]


def test_a_state_goes_on_where_a_generator_stopped():
    columns, options, streams = golden("a")
    second = IdklSampler(*columns, **options).state(1)
    assert list(IdklSampler(*columns, **options | {"seed": 0}, state=second)) == streams[1]
    first = np.random.RandomState(options["seed"]).get_state()
    assert list(IdklSampler(*columns, **options | {"seed": 0}, state=first)) == streams[0]


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    columns, options, _ = golden("a")
    list(IdklSampler(*columns, **options))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_regdb_has_68_batches():
    labels, modality = columns([(10, 10)] * 206)
    sampler = IdklSampler(labels, modality, num_ids=6, num_instances=5)
    assert [(sampler.set_epoch(epoch), len(sampler))[1] for epoch in range(5)] == [68] * 5


@given(st.lists(st.tuples(st.integers(3, 9), st.integers(3, 9)), min_size=2, max_size=8), st.integers(0, 3))
def test_every_batch_is_p_identities_and_no_image_comes_twice(counts, epoch):
    labels, modality = columns(counts)
    sampler = IdklSampler(labels, modality, num_ids=2, num_instances=3)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) >= 1
    assert max(Counter(row for batch in batches for row in batch).values()) == 1
    for batch in batches:
        grid = np.array(batch).reshape(2, 3, 2)
        assert (modality[grid] == [1, 0]).all()
        assert (labels[grid] == labels[grid[:, :1, :1]]).all()
        assert labels[grid[0, 0, 0]] != labels[grid[1, 0, 0]]


def test_too_few_images_of_both_modalities_are_repeated_as_published():
    labels, modality = columns([(2, 1), (3, 3)])
    batch = next(iter(IdklSampler(labels, modality, num_ids=2, num_instances=3)))
    assert sorted(Counter(labels[batch]).items()) == [(0, 6), (10, 6)]


def test_too_few_images_of_one_modality_are_the_users_choice():
    labels, modality = columns([(4, 4), (4, 2), (4, 4), (0, 4)])
    options = {"num_ids": 2, "num_instances": 3}
    message = "labels: identity 10 has 2 infrared and 4 visible images, expected num_instances 3 of each or fewer"
    with pytest.raises(ValueError, match=re.escape(message)):
        IdklSampler(labels, modality, **options)
    with pytest.raises(ValueError, match="labels: identity 30 has no visible image"):
        IdklSampler(labels, modality, **options, short="repeat")
    skipped = IdklSampler(labels, modality, **options, short="skip")
    assert {label for batch in skipped for label in labels[batch]} == {0, 20}
    kept = labels < 30
    repeated = list(IdklSampler(labels[kept], modality[kept], **options | {"num_ids": 3}, short="repeat"))
    assert [Counter(labels[batch].tolist()) for batch in repeated] == [{0: 6, 10: 6, 20: 6}]


def test_short_changes_nothing_where_nobody_is_short():
    columns, options, streams = golden("a")
    for short in ("skip", "repeat"):
        assert list(IdklSampler(*columns, **options, short=short)) == streams[0]


def test_most_batches():
    columns, options, streams = golden("a")
    sampler = IdklSampler(*columns, **options, num_batches=3)
    assert len(sampler) == 3
    assert list(sampler) == streams[0][:3]
    assert len(IdklSampler(*columns, **options, num_batches=1000)) == len(streams[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short": "drop"}, "short: expected one of error, skip, repeat, got 'drop'"),
        ({"seed": 2**32}, "seed: expected at most 4294967295, got 4294967296"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"num_batches": 0}, "num_batches: expected at least 1, got 0"),
        ({"num_ids": 3}, "num_ids: expected at most 2, the identities in labels, got 3"),
        ({"state": (1, 2)}, "state: expected what np.random.get_state() returns"),
    ],
)
def test_bad_arguments(options, message):
    labels, modality = columns([(2, 2)] * 2)
    with pytest.raises(ValueError, match=re.escape(message)):
        IdklSampler(labels, modality, **{"num_ids": 1, "num_instances": 1} | options)
