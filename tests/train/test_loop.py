import json

import pytest
import torch

from vifast.train import checkpoint
from vifast.train.config import ConfigError, OptimizerConfig, load_config
from vifast.train.datasets import open_dataset
from vifast.train.evaluate import evaluate_run
from vifast.train.log import read_metrics
from vifast.train.loop import RunError, Trainer
from vifast.train.optimizer import build_optimizer
from vifast.train.ranked import load_ranked, rank_queries


@pytest.fixture
def config(tiny_overrides):
    return load_config("agw-sysu", tiny_overrides)


@pytest.fixture
def finished(config, tmp_path):
    out = tmp_path / "whole"
    evaluation = Trainer(config, out, quiet=True).fit()
    return out, evaluation


def test_run_leaves_all_its_files(finished, config):
    out, evaluation = finished
    records = read_metrics(out)
    assert [record["step"] for record in records if record["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [record["epoch"] for record in records if record["kind"] == "eval"] == [2, 3]
    assert {"loss", "ce", "wrt", "lr_factor", "images_per_second"} <= records[0].keys()
    assert load_config(out / "config.yaml") == config
    run = json.loads((out / "run.json").read_text())
    assert run["num_classes"] == 6
    assert run["versions"]["torch"] == torch.__version__
    results = json.loads((out / "results.json").read_text())
    assert results["rank1"] == evaluation.scores.rank1 == results["cmc"][0]
    assert load_ranked(out) == rank_queries(evaluation, open_dataset(config))
    assert checkpoint.latest(out).name == "epoch-0003"


def test_learning_rate_follows_the_schedule(finished):
    factors = [record["lr_factor"] for record in read_metrics(finished[0]) if record["kind"] == "train"]
    assert factors == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_evaluate_run_gives_the_scores_of_the_last_epoch(finished, config):
    out, evaluation = finished
    again = evaluate_run(out, config.data)
    assert again.scores.to_json() == evaluation.scores.to_json()


def test_evaluate_run_names_what_is_missing(finished, config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a run's folder, it has no config\.yaml"):
        evaluate_run(tmp_path, config.data)
    out = finished[0]
    (checkpoint.latest(out) / checkpoint.WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"epoch-0003/weights\.safetensors: damaged"):
        evaluate_run(out, config.data)
    checkpoint.latest(out).rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        evaluate_run(out, config.data)


def test_folder_of_another_run_is_left_alone(finished, config, tiny_overrides):
    out = finished[0]
    with pytest.raises(RunError, match="already holds a run; add --resume"):
        Trainer(config, out, quiet=True)
    other = load_config("agw-sysu", [*tiny_overrides, "optimizer.lr=0.5", "seed=1"])
    with pytest.raises(RunError, match=r"the run to resume has another optimizer\.lr, seed"):
        Trainer(other, out, resume=True, quiet=True)


def test_damaged_training_state_is_named(finished, config):
    path = checkpoint.latest(finished[0]) / checkpoint.STATE
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{path}: damaged"):
        Trainer(config, finished[0], resume=True, quiet=True)


def test_loss_that_is_not_finite_stops_the_run(tiny_overrides, tmp_path):
    config = load_config("agw-sysu", [*tiny_overrides, "optimizer.lr=1e30"])
    with pytest.raises(RunError, match=r"the loss is .*; try a lower optimizer.lr"):
        Trainer(config, tmp_path / "run", quiet=True).fit()


def test_low_precision_and_clipping_train(tiny_overrides, tmp_path):
    overrides = [*tiny_overrides, "precision=bf16", "optimizer.clip_norm=1.0", "epochs=1", "optimizer.name=adamw"]
    Trainer(load_config("agw-sysu", overrides), tmp_path / "run", quiet=True).fit()


def test_no_data_is_a_configuration_error(tiny_overrides, tmp_path):
    with pytest.raises(ConfigError, match="data: expected the dataset's root folder"):
        Trainer(load_config("agw-sysu", [*tiny_overrides, "data=null"]), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_optimizer_scales_rates_by_group(config, tmp_path):
    trainer = Trainer(config, tmp_path / "run", quiet=True)
    rates = {len(group["params"]): group["base_lr"] for group in trainer.optimizer.param_groups}
    groups = trainer.system.parameter_groups()
    assert rates == {len(groups["backbone"]): pytest.approx(0.01), len(groups["head"]): 0.1}
    with pytest.raises(ConfigError, match="expected among backbone, head, got 'trunk'"):
        build_optimizer(trainer.system, OptimizerConfig(lr_scale={"trunk": 0.1}))


def test_threads_are_set(tiny_overrides, tmp_path):
    before = torch.get_num_threads()
    try:
        Trainer(load_config("agw-sysu", [*tiny_overrides, "threads=1"]), tmp_path / "run", quiet=True)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
