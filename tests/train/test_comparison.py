"""Which runs are one row of the table of scores, what the row is called, and its numbers."""

from pathlib import Path

import pytest

from vifast.train.comparison import group_runs, score_table
from vifast.train.record import Run

SCORES = ("rank1", "mean_ap", "mean_inp")


def make_run(name, *scores, **changes):
    config = {"system": "agw", "seed": 0, "options": {"gem_p": 3.0}, "optimizer": {"lr": 0.1}} | changes
    results = dict(zip(SCORES, scores, strict=True)) if scores else None
    return Run(Path("runs") / name, config, {}, [], [], results)


def test_runs_that_differ_in_their_seed_are_one_row_with_mean_and_deviation():
    runs = [make_run("a", 0.5, 0.4, 0.3), make_run("b", 0.7, 0.4, 0.4, seed=1)]
    runs += [make_run("c", 0.55, 0.6, 0.2, optimizer={"lr": 0.2})]
    table = score_table(group_runs(runs))
    assert table.heads == ["", "Rank-1 (%)", "mAP (%)", "mINP (%)", "runs"]
    assert table.rows == [
        ("optimizer.lr=0.1", "60.0 ± 14.1", "40.0 ± 0.0", "35.0 ± 7.1", "2"),
        ("optimizer.lr=0.2", "55.0", "60.0", "20.0", "1"),
    ]
    marks = [[cell.mark for cell in row[1:4]] for row in table.rows]
    assert marks == [["hit", "", "hit"], ["", "hit", ""]]
    assert "standard deviation" in table.text


def test_runs_that_are_not_finished_are_counted_and_not_averaged():
    runs = [make_run("a", 0.5, 0.4, 0.3), make_run("b", seed=1), make_run("c", system="idkl")]
    table = score_table(group_runs(runs))
    assert [row[1:] for row in table.rows] == [
        ("50.0", "40.0", "30.0", "1 of 2 finished"),
        ("–", "–", "–", "0 of 1 finished"),
    ]
    assert table.text == ""


def test_one_configuration_is_named_by_its_folder():
    groups = group_runs([make_run("a"), make_run("b", seed=1)])
    assert list(groups) == ["a"]
    assert score_table(groups).rows[0][0] == "a"


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{}, {"precision": "bf16"}, {"precision": "no"}], ["a", "precision=bf16", "precision=no"]),
        ([{"system": "agw"}, {"system": "idkl", "options": {"margin": 1.3}}], ["system=agw", "system=idkl"]),
        (
            [{"options": {"terms": ["ce", "tgsa", "csa"]}}, {"options": {"terms": ["ce", "csa"]}}],
            ["options.terms=all", "options.terms=all but tgsa"],
        ),
        (
            [{"options": {"terms": ["ce", "tgsa"]}}, {"options": {"terms": ["csa"]}}],
            ["options.terms=all", 'options.terms=["csa"]'],
        ),
        (
            [{"milestones": [1, 2], "clip": None}, {"milestones": [], "clip": 1.0}],
            ["milestones=[1, 2], clip=null", "milestones=[], clip=1.0"],
        ),
    ],
)
def test_rows_are_named_by_what_differs(changes, names):
    runs = [make_run(name, **change) for name, change in zip("abc", changes, strict=False)]
    assert list(group_runs(runs)) == names


def test_names_are_never_shared():
    runs = [make_run("a", new=1), make_run("b"), make_run("c", new=1, other=2), make_run("d", system="idkl")]
    assert list(group_runs(runs)) == ["system=agw", "system=agw (b)", "system=agw (c)", "system=idkl"]
