"""Averages and forgetting by hand."""

import json

import pytest

from vifast.train.matrix import KEYS, Matrix


def scores(mean_ap, first=None):
    found = dict.fromkeys(KEYS, mean_ap)
    return found if first is None else found | {"first_trial": dict.fromkeys(KEYS, first)}


@pytest.fixture
def matrix():
    matrix = Matrix((("a",), ("b", "c"), ("d",)))
    matrix.put(0, "a", scores(0.5, first=0.25))
    for name, value in {"a": 0.75, "b": 0.5, "c": 0.25}.items():
        matrix.put(1, name, scores(value))
    for name, value in {"a": 0.25, "b": 0.25, "c": 0.5, "d": 1.0}.items():
        matrix.put(2, name, scores(value))
    return matrix


def test_by_hand(matrix):
    assert [matrix.average(stage) for stage in range(3)] == [0.5, 0.5, 0.5]
    # After the last stage: a fell from 0.75 to 0.25, b from 0.5 to 0.25, c never fell.
    assert [matrix.forgetting(stage) for stage in range(3)] == [None, 0.0, 0.25]
    # Against what they were when they were trained: a -0.25, b -0.25, c +0.25.
    assert [matrix.backward_transfer(stage) for stage in range(3)] == [None, 0.25, -0.25 / 3]
    assert matrix.course("a") == [0.5, 0.75, 0.25]
    assert matrix.course("c") == [0.25, 0.5]


def test_the_first_trial_alone(matrix):
    assert matrix.average(0, first=True) == 0.25
    assert matrix.backward_transfer(1, first=True) == 0.5


def test_it_is_kept_while_it_grows(matrix, tmp_path):
    partial = Matrix(matrix.order)
    assert (partial.missing(0), partial.complete) == (["a"], 0)
    partial.put(0, "a", scores(0.5))
    partial.put(1, "b", scores(0.5))
    assert (partial.missing(1), partial.complete) == (["a", "c"], 1)
    partial.save(tmp_path)
    assert Matrix.load(tmp_path) == partial
    data = json.loads((tmp_path / "matrix.json").read_text())
    assert data["order"] == [["a"], ["b", "c"], ["d"]]
    assert data["summary"]["mean_ap"] == {"average": [0.5], "forgetting": [None], "backward_transfer": [None]}
    (tmp_path / "matrix.json").write_text("{")
    with pytest.raises(ValueError, match=r"matrix\.json: not the scores of a lifelong run"):
        Matrix.load(tmp_path)
