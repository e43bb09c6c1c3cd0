import pytest
import torch
from safetensors.torch import save_file

from vifast.models import create, load_backbone, read_tensors


@pytest.fixture
def published():
    """The state dict of a whole network as torchvision would save it: with the classifier."""
    torch.manual_seed(1)
    state = create("resnet_tiny").state_dict()
    return {**state, "fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}


def save(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip(published, tmp_path, suffix):
    model = create("resnet_tiny")
    left_out = load_backbone(model, save(published, tmp_path / f"weights{suffix}"))
    assert sorted(left_out) == ["fc.bias", "fc.weight"]
    assert all(torch.equal(value, published[name]) for name, value in model.state_dict().items())


def test_piece_takes_its_stages_and_reports_the_rest(published, tmp_path):
    branch = create("resnet_tiny", first=3)
    left_out = load_backbone(branch, save(published, tmp_path / "w.pth"))
    assert {"conv1.weight", "layer2.0.bn1.weight", "fc.bias"} <= set(left_out)
    assert not any(name.startswith(("layer3", "layer4")) for name in left_out)
    assert torch.equal(branch.layer4[0].conv1.weight, published["layer4.0.conv1.weight"])


def test_files_older_than_num_batches_tracked(published, tmp_path):
    old = {name: value for name, value in published.items() if not name.endswith("num_batches_tracked")}
    load_backbone(create("resnet_tiny"), save(old, tmp_path / "w.pth"))


def test_mismatch_names_every_problem_and_changes_nothing(published, tmp_path):
    del published["layer1.0.conv1.weight"]
    published["bn1.weight"] = torch.zeros(7)
    published["layer2.9.conv1.weight"] = torch.zeros(1)
    published["head.weight"] = torch.zeros(1)
    model = create("resnet_tiny")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit this network") as caught:
        load_backbone(model, save(published, tmp_path / "w.pth"))
    message = str(caught.value)
    assert "missing: layer1.0.conv1.weight" in message
    assert "unexpected: layer2.9.conv1.weight, head.weight" in message
    assert "wrong shape: bn1.weight [7] instead of [16]" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 5000])
def test_damaged_file_is_named(published, tmp_path, suffix, keep):
    path = save(published, tmp_path / f"weights{suffix}")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"weights{suffix}: damaged"):
        read_tensors(path)


def test_code_in_a_pickle_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"conv1.weight": create}, path)
    with pytest.raises(ValueError, match="damaged or not a PyTorch file"):
        read_tensors(path)


def test_nested_checkpoint_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="expected a flat dict of tensors"):
        read_tensors(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: no such file"):
        read_tensors(tmp_path / "nothing.pth")
