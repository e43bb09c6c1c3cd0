"""Reading a run's folder: what it tells while it trains and once it is finished, and what is wrong with it."""

import json

import pytest
import yaml

from vifast.train.record import read_run, require_run

CONFIG = {"system": "agw", "dataset": {"name": "sysu"}, "optimizer": {"lr": 0.1}, "epochs": 4, "seed": 0}
STEP = {"kind": "train", "loss": 1.0, "ce": 0.5, "images_per_second": 10.0, "lr_factor": 1.0, "share_data": 0.25}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "run.json").write_text(json.dumps({"num_classes": 3}))
    return tmp_path


def add(folder, *records):
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_a_run_that_has_just_started(folder):
    run = read_run(folder)
    assert (run.config, run.facts) == (CONFIG, {"num_classes": 3})
    assert (run.epochs, run.scores, run.speed, run.parts(), run.shares()) == (0, None, None, [], {})


def test_a_run_under_way_and_one_that_is_finished(folder):
    add(folder, STEP | {"step": 1, "epoch": 0}, STEP | {"step": 2, "epoch": 1, "images_per_second": 30.0, "wrt": 2.0})
    score = {"step": 2, "epoch": 2, "kind": "eval", "rank1": 0.5}
    add(folder, score)
    run = read_run(folder)
    assert [record["step"] for record in run.steps] == [1, 2]
    assert (run.epochs, run.scores, run.speed) == (2, score, 20.0)
    assert run.parts() == ["ce", "wrt"]
    assert run.shares() == {"data": [0.25, 0.25]}
    (folder / "results.json").write_text('{"rank1": 0.6}')
    run = read_run(folder)
    assert (run.epochs, run.scores) == (4, {"rank1": 0.6})


def test_what_is_no_run_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: not a run's folder, it has no config\.yaml"):
        read_run(tmp_path / "nowhere")
    (folder / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not a run's folder, it has no run\.json"):
        require_run(folder)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.yaml", "a: [", r"config\.yaml: damaged \("),
        ("config.yaml", "- 1", r"config\.yaml: expected names and values, got list"),
        ("config.yaml", "system: agw", r"config\.yaml: not the configuration of a run, it has no dataset"),
        ("run.json", "{", r"run\.json: damaged \("),
        ("results.json", "", r"results\.json: damaged \("),
        ("results.json", "\udcff", r"results\.json: damaged \("),
    ],
)
def test_damaged_files_are_named_in_one_line(folder, name, text, words):
    (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=words) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)
