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
    checkpoint.load_weights(folder, other)
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
    load = checkpoint.load_state if name == checkpoint.STATE else lambda f: checkpoint.load_weights(f, model)
    with pytest.raises(ValueError, match=f"{path}: damaged"):
        load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=str(path)):
        load(folder)


def test_weights_of_another_system_are_one_clear_line(model, tmp_path):
    folder = checkpoint.save(tmp_path, 1, model, {})
    with pytest.raises(ValueError, match="does not fit this system") as caught:
        checkpoint.load_weights(folder, nn.Linear(2, 2))
    assert "\n" not in str(caught.value)
