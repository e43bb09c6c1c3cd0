import dataclasses

import pytest
import torch
from torch.nn import functional

from vifast.losses import WeightedTripletLoss
from vifast.models import create
from vifast.systems import SYSTEMS, System, get
from vifast.systems.agw import AGW, AGWOptions

TINY = AGWOptions(backbone="resnet_tiny", non_local=(0, 0, 1, 0))


@pytest.fixture
def agw():
    torch.manual_seed(0)
    return AGW.build(TINY, num_classes=3)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(12, 3, 48, 24, generator=generator),
        "label": torch.arange(3).repeat_interleave(4),
        "modality": torch.tensor([1, 0]).repeat(6),
    }


def test_registry_gives_systems():
    assert all(issubclass(get(name), System) for name in SYSTEMS)
    with pytest.raises(ValueError, match=r"system: expected one of agw, .*, got 'agv'"):
        get("agv")


def test_loss_is_cross_entropy_plus_weighted_triplet_of_the_pooled_feature(agw, batch):
    pooled = []
    agw.neck.register_forward_pre_hook(lambda module, args: pooled.append(args[0]))
    logits = []
    agw.classifier.register_forward_hook(lambda module, args, output: logits.append(output))
    parts = agw(batch)
    assert list(parts) == ["loss", "ce", "wrt"]
    torch.testing.assert_close(parts["ce"], functional.cross_entropy(logits[0], batch["label"]))
    torch.testing.assert_close(parts["wrt"], WeightedTripletLoss()(pooled[0], batch["label"]))
    torch.testing.assert_close(parts["loss"], parts["ce"] + parts["wrt"])


def test_every_trainable_parameter_gets_a_gradient(agw, batch):
    agw(batch)["loss"].backward()
    without = [name for name, p in agw.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_features_have_unit_length_and_keep_the_batchs_order(agw, batch):
    agw(batch)  # moves the running statistics of the two stems apart
    agw.eval()
    together = agw.embed(batch)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(12))
    for i in range(12):
        one = {name: value[i : i + 1] for name, value in batch.items()}
        torch.testing.assert_close(agw.embed(one)[0], together[i], rtol=1e-4, atol=1e-5)


def test_modality_decides_the_stem(agw, batch):
    agw.eval()
    torch.nn.init.zeros_(agw.stem_infrared.bn1.weight)
    flipped = {**batch, "modality": 1 - batch["modality"]}
    same = (agw.embed(batch) - agw.embed(flipped)).abs().amax(1)
    assert (same > 1e-3).all()


def test_groups_hold_every_trainable_parameter_once(agw):
    groups = agw.parameter_groups()
    assert sorted(groups) == ["backbone", "head"]
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in agw.parameters() if p.requires_grad)
    assert {id(p) for p in groups["head"]} == {id(agw.neck.weight), id(agw.classifier.weight)}


def test_published_network_puts_five_non_local_blocks():
    with torch.device("meta"):
        agw = AGW.build(AGWOptions(), num_classes=395)
    assert list(agw.non_local) == ["2_2", "2_3", "3_3", "3_4", "3_5"]
    assert agw.classifier.weight.shape == (395, 2048)


def test_weights_fill_both_stems_and_the_trunk(tmp_path, batch):
    source = create("resnet_tiny")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    agw = AGW.build(dataclasses.replace(TINY, weights=str(tmp_path / "w.pth")), num_classes=3)
    for stem in (agw.stem_visible, agw.stem_infrared):
        assert torch.equal(stem.conv1.weight, source.conv1.weight)
    assert torch.equal(agw.trunk.layer4[0].conv2.weight, source.layer4[0].conv2.weight)


def test_rejects_more_non_local_blocks_than_there_are():
    with pytest.raises(ValueError, match="non_local: stage 3 has 1 blocks, got 2"):
        AGW.build(AGWOptions(backbone="resnet_tiny", non_local=(0, 0, 2, 0)), num_classes=3)
