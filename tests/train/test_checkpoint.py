import pytest
import torch
from torch import nn

from vifast.train import checkpoint


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_round_trip(model, tmp_path):
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    folder = checkpoint.save(tmp_path, 3, model, {"optimizer": optimizer.state_dict(), "step": 12})
    assert checkpoint.latest(tmp_path) == folder
    other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    checkpoint.load_weights(folder / checkpoint.WEIGHTS, other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    state = checkpoint.load_state(folder)
    assert state["step"] == 12
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_only_the_newest_is_kept(model, tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for epoch in (1, 2, 2):
        checkpoint.save(tmp_path, epoch, model, {})
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["epoch-0002"]


def test_failure_while_writing_leaves_the_previous_one(model, tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, model, {})

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, model, {})
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["epoch-0001"]


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.STATE])
@pytest.mark.parametrize("keep", [0, 100])
def test_damaged_file_is_named(model, tmp_path, name, keep):
    folder = checkpoint.save(tmp_path, 1, model, {"step": 1})
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])
    load = checkpoint.load_state if name == checkpoint.STATE else lambda f: checkpoint.load_weights(f / name, model)
    with pytest.raises(ValueError, match=f"{path}: damaged"):
        load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=str(path)):
        load(folder)


def test_weights_of_another_system_are_one_clear_line(model, tmp_path):
    folder = checkpoint.save(tmp_path, 1, model, {})
    with pytest.raises(ValueError, match="does not fit this system") as caught:
        checkpoint.load_weights(folder / checkpoint.WEIGHTS, nn.Linear(2, 2))
    assert "\n" not in str(caught.value)


def test_positions_within_an_epoch_come_after_it(model, tmp_path):
    names = []
    for epoch, step in ((2, 0), (2, 7), (2, 12), (3, 0)):
        checkpoint.save(tmp_path, epoch, model, {}, step=step)
        names.append(checkpoint.latest(tmp_path).name)
    assert names == ["epoch-0002", "epoch-0002-step-00007", "epoch-0002-step-00012", "epoch-0003"]


def test_the_best_is_one_file_with_its_score(model, tmp_path):
    assert checkpoint.best_score(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="no best checkpoint"):
        checkpoint.find_weights(tmp_path, "best")
    with pytest.raises(ValueError, match="checkpoint: expected one of last, best, got 'first'"):
        checkpoint.find_weights(tmp_path, "first")
    checkpoint.save(tmp_path, 1, model, {})
    checkpoint.save_best(tmp_path, model, {"epoch": 1, "rank1": 0.5})
    assert checkpoint.best_score(tmp_path) == {"epoch": 1, "rank1": 0.5}
    assert checkpoint.latest(tmp_path).name == "epoch-0001"
    other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    checkpoint.load_weights(checkpoint.find_weights(tmp_path, "best"), other)
    assert torch.equal(other[0].weight, model[0].weight)


def test_a_run_that_would_not_fit_is_refused(tmp_path):
    checkpoint.require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(OSError, match=r"its checkpoints need .* MiB, the disk has"):
        checkpoint.require_space(tmp_path, 2**60)
    assert list(tmp_path.iterdir()) == []
