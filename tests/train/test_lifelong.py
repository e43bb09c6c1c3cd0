"""Stages follow each other, are scored on all that was seen, and go on after a kill anywhere to the same bits."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from same_runs import trajectory

from vifast.data import synthetic
from vifast.train import checkpoint, lifelong
from vifast.train.config import ConfigError, load_config
from vifast.train.evaluate import evaluate_run
from vifast.train.lifelong import Lifelong, extract_any, joint, plan_stages
from vifast.train.lifelong_config import dump_lifelong, load_lifelong
from vifast.train.loop import RunError, Trainer
from vifast.train.plan import plan_run

TINY = [
    *("options.backbone=vit_tiny_demo", "options.stride=16", "epochs=2", "steps_per_epoch=2", "precision=no"),
    *(f"dataset.{name}" for name in ("height=32", "width=16", "num_ids=2", "num_instances=2", "loader=pillow")),
    *("stages.vcm.dataset.min_frames=1", "stages.vcm.dataset.frames=1", "threads=1", "checkpoint_every=1"),
]


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lifelong") / "four"
    return synthetic.write_benchmark(folder, num_ids=8, size=(32, 16), images_per_camera=1)


@pytest.fixture
def configured(roots):
    """``configured(*overrides, preset=..)`` with the folders of all datasets, in an order that is not the presets'."""
    data = [f"data.{name}={root}" for name, root in roots.items()]
    return lambda *overrides, preset="ckda": load_lifelong(preset, [*data, *TINY, "order=[vcm, regdb]", *overrides])


def run(config, out, **options):
    return Lifelong(config, out, quiet=True, **options)


def weights(folder):
    return {path.name: load_file(path) for path in sorted((folder / checkpoint.FINAL).iterdir())}


def same_stages(out, whole):
    assert json.loads((out / "matrix.json").read_text()) == json.loads((whole / "matrix.json").read_text())
    for stage in sorted(whole.glob("[0-9]-*")):
        mine = out / stage.name
        assert trajectory(mine) == trajectory(stage)
        assert (mine / "results.json").read_text() == (stage / "results.json").read_text()
        for name, tensors in weights(stage).items():
            found = weights(mine)[name]
            assert all(torch.equal(found[key], value) for key, value in tensors.items()), name


@pytest.fixture(scope="session")
def whole(roots, tmp_path_factory):
    """A run that nobody cut short."""
    out = tmp_path_factory.mktemp("lifelong") / "whole"
    data = [f"data.{name}={root}" for name, root in roots.items()]
    run(load_lifelong("ckda", [*data, *TINY, "order=[vcm, regdb]"]), out).fit()
    return out


def test_stages_are_ordinary_runs_and_the_matrix_is_theirs(whole, roots):
    matrix = json.loads((whole / "matrix.json").read_text())
    assert matrix["order"] == [["vcm"], ["regdb"]]
    assert [list(row) for row in matrix["stages"]] == [["vcm"], ["vcm", "regdb"]]
    assert matrix["summary"]["mean_ap"]["average"][1] == np.mean(
        [row["mean_ap"] for row in matrix["stages"][1].values()]
    )
    config = load_lifelong(whole / "config.yaml")
    assert config.stage(1, whole / "1-vcm").options.previous == str(whole / "1-vcm")
    results = json.loads((whole / "2-regdb" / "results.json").read_text())
    assert {key: results[key] for key in ("rank1", "mean_ap", "mean_inp")}.items() <= matrix["stages"][1][
        "regdb"
    ].items()
    assert evaluate_run(whole / "2-regdb", roots["regdb"]).scores.to_dict() == results
    classes = [json.loads((whole / name / "run.json").read_text())["num_classes"] for name in ("1-vcm", "2-regdb")]
    assert classes == [6, 4]  # of that dataset alone


def test_the_last_stage_is_evaluated_on_any_of_the_datasets(whole, roots):
    matrix = json.loads((whole / "matrix.json").read_text())
    for name in ("vcm", "regdb"):
        found = extract_any(whole, roots[name])
        assert found.score().scalars().items() <= matrix["stages"][1][name].items()
    assert extract_any(whole, roots["llcm"]).score().protocol.startswith("LLCM")  # which it never saw
    assert extract_any(whole / "1-vcm", roots["vcm"]).score().mean_ap == matrix["stages"][0]["vcm"]["mean_ap"]


class Killed(BaseException):
    pass


@pytest.fixture
def kill(monkeypatch):
    """``kill(owner, name, at)``: the call number ``at`` (from 1) of a function ends the program before or after it."""

    def arm(owner, name, at, after=False):
        function, calls = getattr(owner, name), []

        def wrapped(*args, **options):
            calls.append(1)
            if len(calls) == at and not after:
                raise Killed
            result = function(*args, **options)
            if len(calls) == at:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, wrapped)

    return arm


POINTS = {
    "first stage": (Trainer, "_train_step", 2),
    "between the stages": (lifelong, "Trainer", 2),
    "second stage": (Trainer, "_train_step", 6),
    "finish of the first": (checkpoint, "save_final", 1),
    "finish of the second": (checkpoint, "save_final", 2),
    "end of the second": (Trainer, "_score", 2),
    "evaluation on the first": (lifelong, "evaluate_system", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_cut_short_it_goes_on_to_the_same_bits(point, configured, whole, tmp_path, kill, monkeypatch):
    config, out = configured(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(*POINTS[point][:2], getattr(*POINTS[point][:2]))
        kill(*POINTS[point])
        with pytest.raises(Killed):
            run(config, out).fit()
        patch.undo()
    monkeypatch.undo()
    torch.manual_seed(12345)  # whatever the new process's generator holds must not matter
    run(config, out, resume=True).fit()
    same_stages(out, whole)


PROGRAM = """
import sys, pathlib
from vifast.train.lifelong import Lifelong
from vifast.train.lifelong_config import load_lifelong
Lifelong(load_lifelong(sys.argv[1]), pathlib.Path(sys.argv[2]), resume=True, quiet=True).fit()
"""


@pytest.mark.slow
def test_killed_by_the_system_at_random_moments(configured, whole, tmp_path):
    """kill -9 again and again, at whatever point the run has come to, until it is through."""
    (tmp_path / "config.yaml").write_text(dump_lifelong(configured()))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "config.yaml"), str(tmp_path / "run")]
    kills = 0
    for waited in ("1-vcm/metrics.jsonl", "1-vcm/final", "2-regdb/run.json", "2-regdb/final"):
        process = subprocess.Popen(command, cwd=tmp_path)
        while process.poll() is None and not (tmp_path / "run" / waited).exists():
            time.sleep(0.002)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert subprocess.run(command, cwd=tmp_path, check=True).returncode == 0
    assert kills >= 3
    same_stages(tmp_path / "run", whole)


@pytest.mark.slow
def test_two_processes_train_and_score_together(configured, tmp_path):
    (tmp_path / "config.yaml").write_text(dump_lifelong(configured("evaluate_every=0")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "config.yaml"), str(tmp_path / "run")]
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    how = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, env=os.environ | meet | rank, **how) for rank in ranks]
    for process in runs:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    order = [["vcm"], ["regdb"]]
    matrix = json.loads((tmp_path / "run" / "matrix.json").read_text())
    assert (matrix["order"], [len(row) for row in matrix["stages"]]) == (order, [1, 2])


def test_a_finished_run_goes_on_with_a_longer_order(configured, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    before = weights(out / "2-regdb")
    longer = configured("order=[vcm, regdb, llcm]")
    with pytest.raises(RunError, match="already holds a run; add --resume"):
        run(longer, out)
    matrix = run(longer, out, resume=True).fit()
    assert matrix.complete == 3
    assert all(torch.equal(v, weights(out / "2-regdb")[f][n]) for f, ts in before.items() for n, v in ts.items())
    with pytest.raises(RunError, match=r"has the order vcm, regdb, llcm, which vcm, llcm does not go on from"):
        run(configured("order=[vcm, llcm]"), out, resume=True)


def untouched(out):
    return {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture
def begun(whole, tmp_path):
    """A copy of a run whose second stage is not finished."""
    out = shutil.copytree(whole, tmp_path / "begun")
    for name in ("results.json", "ranked.json"):
        (out / "2-regdb" / name).unlink()
    return out


def refused(config, out, error, message):
    """Before any training, and with all files as they were."""
    before = untouched(out)
    with pytest.raises(error, match=message) as caught:
        run(config, out, resume=True)
    assert "\n" not in str(caught.value)
    assert untouched(out) == before


def test_what_is_missing_is_told_before_the_first_stage(configured, roots, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="LLCM: folder not found: nowhere"):
        run(configured("order=[regdb, llcm, vcm]", "data.llcm=nowhere"), out)
    with pytest.raises(FileNotFoundError, match=re.escape(str(roots["sysu"]))):  # another dataset's folder
        run(configured("order=[regdb, llcm]", f"data.llcm={roots['sysu']}"), out)
    with pytest.raises(ConfigError, match=r"data\.llcm: expected the dataset's root folder.*\ndata\.sysu: expected"):
        run(
            load_lifelong("ckda", [f"data.regdb={roots['regdb']}", f"data.vcm={roots['vcm']}", "order=[llcm, sysu]"]),
            out,
        )
    assert not out.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "knowledge.safetensors"])
def test_a_damaged_stage_is_told_before_any_training(begun, configured, name):
    path = begun / "1-vcm" / "final" / name
    path.write_bytes(path.read_bytes()[:-40])
    refused(configured(), begun, ValueError, f"{re.escape(str(path))}: damaged safetensors file")
    path.unlink()
    refused(configured(), begun, FileNotFoundError, re.escape(str(path)))


def test_a_damaged_checkpoint_of_the_stage_under_way(begun, configured):
    shutil.rmtree(begun / "2-regdb" / "final")
    path = checkpoint.latest(begun / "2-regdb") / checkpoint.STATE
    path.write_bytes(path.read_bytes()[:-400])
    refused(configured(), begun, ValueError, f"{re.escape(str(path))}: damaged")
    path.unlink()
    refused(configured(), begun, FileNotFoundError, f"{re.escape(str(path))}: no such file")


@pytest.mark.parametrize("name", ["matrix.json", "2-regdb/run.json", "2-regdb/config.yaml", "config.yaml"])
def test_other_damaged_files(begun, configured, name):
    (begun / name).write_text("{")
    refused(configured(), begun, ValueError, re.escape(str(begun / name)))


def test_another_dataset_or_configuration_under_a_stage(begun, configured, roots, tmp_path):
    other = synthetic.write("vcm", tmp_path / "vcm", num_ids=9, num_test=2, size=(32, 16), images_per_camera=1)
    moved = roots["vcm"].with_name("moved")
    roots["vcm"].rename(moved)
    try:
        shutil.copytree(other, roots["vcm"])
        message = f"1-vcm: data: {re.escape(str(roots['vcm']))} is not what the run to resume was made from"
        refused(configured(), begun, RunError, message)
    finally:
        shutil.rmtree(roots["vcm"])
        moved.rename(roots["vcm"])
    refused(configured("stages.vcm.optimizer.lr=1"), begun, RunError, r"1-vcm.*has another optimizer\.lr")


def test_what_would_fail_in_a_later_stage_is_told_before_the_first(configured, tmp_path):
    for change, message in (
        ("stages.regdb.dataset.num_ids=5", "^stages.regdb: num_ids: expected at most 4, .* got 5$"),
        ("stages.regdb.dataset.height=48", "^stages.regdb: previous: 1-vcm/weights.safetensors: does not fit this"),
        ("stages.regdb.system=lwf", "^stages.regdb: previous: 1-vcm/knowledge.safetensors: expected head0"),
        ("options.weights=nowhere.pth", "^nowhere.pth: no such file$"),
    ):
        with pytest.raises((ConfigError, FileNotFoundError), match=message) as caught:
            run(configured(change), tmp_path / "run")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_run_and_datasets_may_lie_elsewhere_when_it_goes_on(configured, roots, whole, tmp_path, kill, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", Trainer._train_step)
        kill(Trainer, "_train_step", 6)
        with pytest.raises(Killed):
            run(configured(), tmp_path / "run").fit()
        patch.undo()
    monkeypatch.undo()
    moved = shutil.copytree(roots["vcm"].parent, tmp_path / "data")
    (tmp_path / "run").rename(tmp_path / "other")
    config = configured(*(f"data.{name}={moved / root.name}" for name, root in roots.items()))
    run(config, tmp_path / "other", resume=True).fit()
    same_stages(tmp_path / "other", whole)
    assert load_lifelong(tmp_path / "other" / "config.yaml") == config
    assert load_config(tmp_path / "other" / "2-regdb" / "config.yaml").data == moved / roots["regdb"].name


def test_a_folder_with_stages_is_a_run_even_without_its_configuration(begun, configured):
    (begun / "config.yaml").unlink()
    with pytest.raises(RunError, match="begun: already holds a run; add --resume"):
        run(configured(), begun)


def test_a_plan_has_the_teachers_of_later_stages(configured, whole):
    for preset, taught in (("ckda", True), ("ckda-lwf", True), ("ckda-ema", False)):
        first, second = (plan for _, plan in plan_stages(configured(preset=preset)))
        assert (first.teacher_bytes, second.teacher_bytes > 0) == (0, taught)
        assert (second.flops_per_image > 1.2 * first.flops_per_image) == taught
    config = configured()
    (_, first), (_, second) = plan_stages(config)
    assert first == plan_run(config.stage(0, None))
    assert second == plan_run(config.stage(1, whole / "1-vcm"))  # as of one that is there


def test_a_stage_whose_predecessor_is_gone(begun, configured):
    (begun / "1-vcm" / "results.json").unlink()
    refused(configured(), begun, RunError, "2-regdb: goes on from .*1-vcm, which is not finished")


def test_joint_training_is_one_stage_on_all(configured, tmp_path):
    config = configured("order=[vcm+regdb]", preset="ckda-joint")
    trained = run(config, tmp_path / "run")
    dataset = trained.stages[0].dataset
    assert dataset.num_labels == 6 + 4
    assert np.array_equal(np.unique(dataset.train.labels), np.arange(10))
    vcm, regdb = trained.datasets["vcm"].train, trained.datasets["regdb"].train
    assert dataset.train.paths == vcm.paths + regdb.paths
    assert dataset.train.labels.tolist() == [*vcm.labels, *(regdb.labels + 6)]
    matrix = trained.fit()
    assert [list(row) for row in matrix.rows] == [["vcm", "regdb"]]
    assert matrix.forgetting(0) is None
    assert (tmp_path / "run" / "1-vcm+regdb" / "final").is_dir()


def test_one_dataset_is_its_own_joint(configured, tmp_path):
    dataset = run(configured(), tmp_path / "run").datasets["vcm"]
    assert joint([dataset]) is dataset


@pytest.mark.parametrize("preset", ["ckda-finetune", "ckda-ema", "ckda-lwf", "ckda-lifelong-release"])
def test_baselines(configured, tmp_path, preset):
    matrix = run(configured(preset=preset), tmp_path / "run").fit()
    assert matrix.complete == 2
    assert 0 <= matrix.forgetting(1) <= 1
    first, second = (weights(tmp_path / "run" / name)["weights.safetensors"] for name in ("1-vcm", "2-regdb"))
    changed = (first[name] - second[name] for name in first if "blocks" in name)
    assert any(bool(change.abs().sum() > 0) for change in changed)
