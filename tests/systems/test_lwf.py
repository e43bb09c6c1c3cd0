"""Learning without forgetting: what the old classifiers say is kept."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from vifast.systems.lwf import LwF, LwFOptions

OPTIONS = {"backbone": "vit_tiny_demo", "image_size": (32, 16), "specific": 0, "common": 0, "dropout": 0.0}


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 1, 1])
    return {
        "image": torch.randn(8, 3, 32, 16, generator=generator),
        "modality": torch.tensor([0, 1]).repeat_interleave(4),
        "label": labels.repeat(2),
    }


def stage(folder, classes, **options):
    """A system that was not trained, whose folder looks as if it was."""
    lwf = LwF.build(LwFOptions(**OPTIONS, **options), num_classes=classes)
    (folder / "final").mkdir(parents=True)
    save_file(lwf.state_dict(), folder / "final" / "weights.safetensors")
    knowledge = {name: weight.detach() for name, weight in lwf.finish(None).items()}
    save_file(knowledge, folder / "final" / "knowledge.safetensors")
    return lwf, knowledge


def test_stages_hand_on_all_classifiers(tmp_path):
    first, knowledge = stage(tmp_path / "1", 5)
    assert knowledge.keys() == {"head0"}
    assert torch.equal(knowledge["head0"], first.classifier.weight)
    second, knowledge = stage(tmp_path / "2", 3, previous=str(tmp_path / "1"))
    assert [list(knowledge[name].shape) for name in ("head0", "head1")] == [[5, 64], [3, 64]]
    third = LwF.build(LwFOptions(**OPTIONS, previous=str(tmp_path / "2")), num_classes=4)
    assert torch.equal(third.head1, second.classifier.weight)
    assert not any(name.startswith(("head", "teacher")) for name in third.state_dict())


def test_distillation_by_the_definition(tmp_path):
    stage(tmp_path / "1", 5)
    lwf = LwF.build(LwFOptions(**OPTIONS, drop_path=0.0, previous=str(tmp_path / "1"), distill=0.5), num_classes=3)
    with torch.no_grad():
        for parameter in lwf.network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        lwf.head0.mul_(1000)  # else its logits hardly differ
    data = batch()
    parts = lwf.train()(data)
    neck = lwf.network.neck(lwf.network(data["image"], data["modality"])[0])
    teacher = lwf.teacher.module
    old = teacher.neck(teacher(data["image"], data["modality"])[0])
    assert not teacher.training
    student, teacher = ((rows @ lwf.head0.T / 2).softmax(1) for rows in (neck, old))
    expected = 4 * (teacher * (teacher / student).log()).sum(1).mean()
    assert expected > 0.01
    assert_close(parts["distill"], expected, rtol=1e-4, atol=1e-6)
    assert_close(parts["loss"], parts["base"] + 0.5 * parts["distill"])
    parts["distill"].backward()
    assert lwf.classifier.weight.grad is None
    assert all(p.grad is not None for p in lwf.network.backbone.blocks.parameters())


def test_a_first_stage_has_the_base_loss_alone():
    parts = LwF.build(LwFOptions(**OPTIONS), num_classes=3).train()(batch())
    assert (parts["distill"], parts["loss"]) == (0, parts["base"])


def test_wrong_knowledge_is_named(tmp_path):
    stage(tmp_path / "1", 5)
    path = tmp_path / "1" / "final" / "knowledge.safetensors"
    save_file({"prototypes_v": torch.zeros(5, 64)}, path)
    message = re.escape(f"previous: {path}: expected head0 .. [C, 64], got {{'prototypes_v': [5, 64]}}")
    with pytest.raises(ValueError, match=message):
        LwF.build(LwFOptions(**OPTIONS, previous=str(tmp_path / "1")), num_classes=3)


@pytest.mark.parametrize("change", [{"temperature": 0.0}, {"distill": -1.0}])
def test_wrong_options(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected"):
        LwFOptions(**change)
