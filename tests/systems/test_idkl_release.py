import pytest
import torch

from vifast.models import create
from vifast.systems.idkl import IDKL, IDKLOptions
from vifast.systems.idkl.release import HEADS, load_release

TINY = {"backbone": "resnet_tiny", "backbone_width": 4, "reduction": 4}
TRUNKS = {"front": "backbone.net", "shared": "backbone.shared_net", "specific": "backbone.special_net"}
GATES = {"gate_normed": "backbone.mask_a", "gate_raw": "backbone.mask_b"}
OTHER_LAYERS = {"0": "first", "1": "norm_first", "4": "second", "5": "norm_second", "8": "third"}  # of a modality head


def release(idkl):
    """A file in the release's form: whole trunks, an unused attention block, the heads under its names."""
    tensors = {}
    for role, prefix in TRUNKS.items():
        whole = create("resnet_tiny", width=4).state_dict()
        whole.update(getattr(idkl.network, role).state_dict())
        tensors |= {f"{prefix}.{name}": value for name, value in whole.items()}
    purifier = idkl.network.purifier
    tensors |= {f"backbone.inorm.{name}": value for name, value in purifier.norm.state_dict().items()}
    tensors["backbone.attention.squeeze.weight"] = torch.randn_like(purifier.gate_raw[0].weight)
    for ours, theirs in GATES.items():
        gate = getattr(purifier, ours)
        tensors |= {f"{theirs}.squeeze.weight": gate[0].weight, f"{theirs}.expand.weight": gate[2].weight}
    for ours, theirs in HEADS.items():
        for name, value in getattr(idkl.objective, ours).state_dict().items():
            layer, _, kind = name.rpartition(".")
            tensors[f"{theirs}.{OTHER_LAYERS[layer]}.{kind}" if layer else f"{theirs}.{kind}"] = value
    return {name: value.detach().clone() for name, value in tensors.items()}


@pytest.fixture
def published(tmp_path):
    torch.manual_seed(1)
    idkl = IDKL(IDKLOptions(**TINY), num_classes=3)
    with torch.no_grad():
        for value in idkl.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    torch.save(release(idkl), tmp_path / "release.pth")
    return idkl, tmp_path / "release.pth"


def values(module):
    return {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}


def test_everything_that_is_used_arrives(published):
    source, path = published
    idkl = IDKL(IDKLOptions(**TINY), num_classes=3)
    unused = load_release(idkl, path, names=GATES)
    for name, value in values(source).items():
        assert torch.equal(values(idkl)[name], value), name
    assert "backbone.attention.squeeze.weight" in unused
    assert "backbone.net.layer3.0.conv1.weight" in unused
    assert "backbone.special_net.conv1.weight" in unused


def test_retrieval_needs_no_names(published):
    source, path = published
    idkl = IDKL(IDKLOptions(**TINY), num_classes=3)
    before = idkl.network.specific.state_dict()["layer3.0.conv1.weight"].clone()
    load_release(idkl, path, retrieval_only=True)
    batch = {"image": torch.randn(2, 3, 64, 32), "modality": torch.tensor([0, 1])}
    with torch.no_grad():
        assert torch.equal(idkl.eval().embed(batch), source.eval().embed(batch))
    assert torch.equal(idkl.network.specific.state_dict()["layer3.0.conv1.weight"], before)
    for name, value in values(source.network.shared).items():
        assert torch.equal(values(idkl.network.shared)[name], value)
    assert torch.equal(idkl.objective.neck_shared.weight, source.objective.neck_shared.weight)


def test_what_leaves_a_choice_is_asked_for(published):
    idkl = IDKL(IDKLOptions(**TINY), num_classes=3)
    with pytest.raises(ValueError, match=r"gate_normed: expected its prefix in names, one of .*backbone\.mask_a"):
        load_release(idkl, published[1])


def test_what_does_not_fit_is_named_and_changes_nothing(published):
    _, path = published
    tensors = torch.load(path)
    idkl = IDKL(IDKLOptions(**TINY), num_classes=4)
    before = {name: value.clone() for name, value in idkl.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"classifier_shared: classifier\.weight: expected shape \[4, 32\], got \[3, 32\]"
    ):
        load_release(idkl, path, names=GATES)
    assert all(torch.equal(value, before[name]) for name, value in idkl.state_dict().items())
    del tensors["backbone.net.layer1.0.bn1.weight"]
    torch.save(tensors, path)
    with pytest.raises(ValueError, match=r"front: backbone\.net\.layer1\.0\.bn1\.weight is missing"):
        load_release(idkl, path, retrieval_only=True)
    torch.save({name.replace("shared_net", "other"): value for name, value in tensors.items()}, path)
    with pytest.raises(ValueError, match=r"shared: expected one ResNet, got .*backbone\.other"):
        load_release(idkl, path, retrieval_only=True)
