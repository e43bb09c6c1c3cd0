"""What all samplers promise: an epoch is a function of (seed, epoch), any position, any number of processes."""

import itertools
import re
from functools import partial

import numpy as np
import pytest
import torch

from vifast.data import CrossModalSampler, IdklSampler, ReplacementSampler, make_loader, sysu

SAMPLERS = {
    "pk": CrossModalSampler,
    "idkl": IdklSampler,
    "halves": ReplacementSampler,
    "alternating": partial(ReplacementSampler, layout="alternating"),
}
LABELS = np.repeat(np.arange(9), 14)
MODALITY = np.tile(np.repeat([0, 1], [8, 6]), 9)


@pytest.fixture(params=SAMPLERS)
def make(request):
    def make(*columns, **options):
        return SAMPLERS[request.param](*columns or (LABELS, MODALITY), **{"num_ids": 4, "num_instances": 2} | options)

    make.layout = "halves" if request.param == "halves" else "alternating"
    return make


def epoch(sampler, number, step=0):
    sampler.start_at(number, step)
    return list(sampler)


def test_an_epoch_is_a_function_of_seed_and_epoch(make):
    forward, backward = make(seed=5), make(seed=5)
    there = [epoch(forward, number) for number in range(4)]
    assert there == [epoch(backward, number) for number in reversed(range(4))][::-1]
    assert there == [epoch(make(seed=5), number) for number in range(4)]
    assert len({str(batches) for batches in there}) == 4
    assert epoch(make(seed=6), 0) != there[0]


def test_any_position_of_an_epoch(make):
    sampler = make(seed=1)
    for number in (0, 2):
        whole = epoch(sampler, number)
        for step in range(len(whole) + 1):
            other = make(seed=1)
            assert epoch(other, number, step) == whole[step:]
            assert len(other) == len(whole)
    sampler.start_at(1, 2)
    sampler.set_epoch(1)
    assert list(sampler) == epoch(make(seed=1), 1)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batch_of_one(make, world_size):
    whole = epoch(make(seed=2), 1, 1)
    shares = [epoch(make(seed=2, rank=rank, world_size=world_size), 1, 1) for rank in range(world_size)]
    assert {len(batch) for share in shares for batch in share} == {16 // world_size}
    assert make(world_size=world_size).batch_size == 16 // world_size
    parts = np.array(shares).transpose(1, 0, 2)  # [batch, rank, row]
    if make.layout == "halves":
        parts = parts.reshape(len(whole), world_size, 2, -1).transpose(0, 2, 1, 3)
    assert parts.reshape(len(whole), -1).tolist() == whole
    people = [[set(LABELS[batch]) for batch in share] for share in shares]
    assert all(not first & second for first, second in zip(*people[:2], strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_after_what_was_trained_on_not_what_was_fetched_ahead(make, sysu_tree, num_workers):
    train = sysu.load(sysu_tree).train

    def loader(position):
        sampler = make(train.labels, train.modality, num_ids=2)
        loader = make_loader(train, size=(16, 8), batch_sampler=sampler, num_workers=num_workers)
        loader.batch_sampler.start_at(*position)
        return loader

    whole = [batch["index"] for batch in loader((1, 0))]
    trained = list(itertools.islice(loader((1, 0)), 2))  # with workers, four batches more are on their way
    rest = [batch["index"] for batch in loader((1, len(trained)))]
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[2:], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 3}, "num_ids: expected a multiple of world_size 3, got 4"),
        ({"world_size": 0}, "world_size: expected at least 1, got 0"),
        ({"rank": 1}, "rank: expected less than world_size 1, got 1"),
        ({"rank": -1}, "rank: expected at least 0, got -1"),
    ],
)
def test_bad_processes(make, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)


@pytest.mark.parametrize(("position", "name"), [((-1, 0), "epoch"), ((0, -1), "step")])
def test_bad_positions(make, position, name):
    with pytest.raises(ValueError, match=f"{name}: expected an integer >= 0, got -1"):
        make().start_at(*position)
    with pytest.raises(TypeError, match=f"{name}: expected an integer, got float"):
        make().start_at(*(0.0 if number < 0 else number for number in position))
