"""The page of runs: what it shows of one and of several, of a finished and of an unfinished one."""

import json
import re
import shutil

import pytest

from vifast.report import render
from vifast.train.config import load_config
from vifast.train.loop import Trainer
from vifast.train.run_page import make_page


@pytest.fixture(scope="module")
def runs(sysu_root, tmp_path_factory):
    """The same run with two seeds, and one of another learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    tiny = [f"data={sysu_root}", "dataset={name: sysu, height: 32, width: 16, num_ids: 2, num_instances: 2}"]
    tiny += ["options={backbone: resnet_tiny, backbone_width: 4, non_local: [0, 0, 0, 0]}", "epochs=2"]
    tiny += ["steps_per_epoch=2", "evaluate_every=1"]
    for name, changes in {"first": ["seed=0"], "again": ["seed=1"], "slow": ["optimizer.lr=0.01"]}.items():
        Trainer(load_config("agw-sysu", [*tiny, *changes]), folder / name, quiet=True).fit()
    return folder


@pytest.fixture
def run(runs, tmp_path):
    """A copy to damage."""
    return shutil.copytree(runs / "first", tmp_path / "first")


def heads(page):
    return re.findall("<h2>(.*?)</h2>", page)


def test_one_run(runs):
    page = render(make_page([runs / "first"]))
    results = json.loads((runs / "first" / "results.json").read_text())
    assert "<h1>first: AGW on SYSU-MM01</h1>" in page
    assert f"<b>{100 * results['rank1']:.1f} %</b>" in page
    assert heads(page) == [
        "Retrieval",
        "Training",
        "Parts of the loss",
        "Trials",
        "4 queries and their nearest gallery images",
        "Training images",
        "The run",
    ]
    assert re.findall("<figure.*?<h3>(.*?)</h3>", page) == [
        *("Rank-1 (%)", "mAP (%)", "mINP (%)", "Cumulative matches (%)"),
        *("Loss", "Learning rate", "Speed", "Time by part", "ce", "wrt"),
    ]
    assert "2 of 2 epochs, 4 steps, seed 0" in page
    assert "system: agw" in page
    assert "2.13" in page


def test_several_runs(runs):
    page = render(make_page([runs / name for name in ("first", "again", "slow")]))
    assert "<h1>3 runs: AGW on SYSU-MM01</h1>" in page
    assert heads(page) == ["Scores", "Retrieval", "Training", "Parts of the loss", "Runs", "Configurations"]
    names = ["optimizer.lr=0.1", "optimizer.lr=0.01"]
    assert re.findall(r"</i>(.*?)</li>", page) == 3 * names
    assert re.findall("<tr><td>(optimizer.*?)</td>", page) == [*names, names[0], names[0], names[1]]
    assert page.count(" ± ") == 3 + 1  # and the sentence that explains it
    assert page.count("<summary>") == 2


def test_a_run_given_twice_is_one(runs):
    assert render(make_page([runs / "first"] * 2)) == render(make_page([runs / "first"]))


def test_images_that_are_not_at_hand_are_told_in_one_line(run, sysu_root, tmp_path):
    page = render(make_page([run], tmp_path))
    words = re.search("<h2>Ranked lists</h2>\n<p>(.*?)</p>", page)[1]
    assert "the images are not at hand" in words
    assert "--data ROOT" in words
    assert '<div class="ranking">' in render(make_page([run], sysu_root))


def test_a_run_that_is_not_finished(run, tmp_path):
    for name in ("results.json", "ranked.json"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:4]) + lines[4][:20])  # killed while it wrote
    page = render(make_page([run]))
    assert "Not finished: 1 of 2 epochs. The scores are those after epoch 1." in page
    assert heads(page) == ["Retrieval", "Training", "Parts of the loss", "Training images", "The run"]
    (run / "metrics.jsonl").unlink()
    page = render(make_page([run]))
    assert "Not finished: 0 of 2 epochs. Not evaluated yet." in page
    assert "No step has been taken yet." in page
    assert "<svg" not in page
    assert "<svg" not in render(make_page([run, shutil.copytree(run, tmp_path / "other")]))
