import json

import pytest
import torch

from vifast.train.log import RunLog, read_metrics


def test_records_steps_and_evaluations(tmp_path):
    with RunLog(tmp_path, total=2, quiet=True) as log:
        log.train(1, {"loss": 2.0, "ce": 1.5}, speed=8.0, epoch=0, shares={"data": 0.25, "forward": 0.75})
        log.evaluation(1, {"rank1": 0.5}, epoch=1)
    train, evaluation = read_metrics(tmp_path)
    assert train.pop("images_per_second") == 8.0
    shares = {"share_data": 0.25, "share_forward": 0.75}
    assert train == {"step": 1, "epoch": 0, "kind": "train", "loss": 2.0, "ce": 1.5, **shares}
    assert evaluation == {"step": 1, "epoch": 1, "kind": "eval", "rank1": 0.5}
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_what_a_system_observed_is_numbers_deciles_and_histograms(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, total=2, quiet=True) as log:
        log.details(1, {"gap": torch.tensor(0.5), "sure": torch.linspace(0, 1, 21)}, epoch=0)
        log.details(2, {}, epoch=0)
    (record,) = read_metrics(tmp_path)
    assert record.pop("sure") == pytest.approx([k / 10 for k in range(11)])
    assert record == {"step": 1, "epoch": 0, "kind": "detail", "gap": 0.5}
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert (board.Tags()["scalars"], board.Tags()["histograms"]) == (["detail/gap"], ["detail/sure"])
    assert board.Histograms("detail/sure")[0].histogram_value.num == 21


def test_resumption_drops_what_will_be_trained_again(tmp_path):
    with RunLog(tmp_path, total=4, quiet=True) as log:
        for step in (1, 2, 3):
            log.train(step, {"loss": float(step)}, speed=1.0, epoch=0, shares={})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with RunLog(tmp_path, total=4, step=2, quiet=True) as log:
        log.train(3, {"loss": 30.0}, speed=1.0, epoch=0, shares={})
    assert [record["loss"] for record in read_metrics(tmp_path)] == [1.0, 2.0, 30.0]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_no_run_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


def test_without_a_folder_nothing_is_recorded_or_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with RunLog(None, total=1) as log:
        log.train(1, {"loss": 1.0}, speed=1.0, epoch=0, shares={})
        log.details(1, {"gap": torch.zeros(())}, epoch=0)
        log.evaluation(1, {"rank1": 1.0}, epoch=1)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
