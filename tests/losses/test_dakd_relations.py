"""DAKDLoss: levels and instance terms of its relatives, and a threshold by class."""

import pytest
import torch
from dakd_oracle import TEMPERATURES, batch, confidence, labelled, levels, masked_class_level
from torch.testing import assert_close

from vifast.losses import DAKDLoss, relations
from vifast.losses.class_threshold import ClassThreshold
from vifast.losses.contrast_memory import ContrastMemory

FACTORS = {"rkd_d": (25, relations.rkd_distance), "rkd_a": (50, relations.rkd_angle)}
FACTORS |= {"sp": (1, relations.similarity_preserving)}
MODES = (*FACTORS, "ickd", "crd")
CRD = {"memory_dim": 48, "memory_size": 5, "contrast_negatives": "instance"}


def keep_of(inputs):
    """The default mask: the surer half of infrared rows, by the class profile."""
    sure = confidence(levels(inputs)["class"][3])
    return (sure >= sure.quantile(0.5)).double()


def joined(inputs):
    return torch.cat(inputs[:2]), torch.cat(inputs[2:4])


@pytest.mark.parametrize("mode", FACTORS)
def test_rows_in_place_of_the_instance_level(mode):
    inputs = batch(9, 12)
    parts = DAKDLoss(instance_mode=mode)(*inputs)
    factor, term = FACTORS[mode]
    rows = term(*joined(inputs))
    wanted = 0.9 * factor * (rows[:9].mean() + (keep_of(inputs) * rows[9:]).mean())
    assert_close(parts["instance"], wanted)
    assert_close(parts["loss"], 0.5 * wanted + 0.5 * parts["class"])
    for one, other in zip(*(torch.autograd.grad(x, inputs[:2]) for x in (parts["instance"], wanted)), strict=True):
        assert_close(one, other)


def test_channels_in_place_of_the_instance_level():
    inputs = batch(9, 12)
    weight = torch.cat((torch.full((9,), 1 / 9), keep_of(inputs) / 12))
    wanted = 0.9 * relations.channel_correlation(*joined(inputs), weight)
    assert_close(DAKDLoss(instance_mode="ickd")(*inputs)["instance"], wanted)


@pytest.mark.parametrize("negatives", ["class", "instance"])
def test_contrast_in_place_of_the_instance_level(negatives):
    options = CRD | {"contrast_negatives": negatives}
    loss = DAKDLoss(instance_mode="crd", contrast_temp=0.3, **options).double()
    memory = ContrastMemory(5, 48, temperature=0.3, negatives=negatives).double()
    for seed in range(3):
        inputs, labels = labelled(9, 12, seed=seed)
        rows = memory(*joined(inputs), torch.cat(tuple(labels.values())))
        wanted = 0.9 * (rows[:9].mean() + (keep_of(inputs) * rows[9:]).mean())
        assert_close(loss(*inputs, **(labels if negatives == "class" else {}))["instance"], wanted)


def softened(logits, temperature):
    z = (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)
    return (z / temperature).softmax(1)


@pytest.mark.parametrize(("n", "n_i"), [(8, 8), (6, 10)])
def test_gram_levels_step_by_step(n, n_i):
    inputs = batch(n, n_i)
    rows = levels(inputs)["class"]
    weight = torch.cat((torch.full((n,), (n + n_i) / (2 * n)), keep_of(inputs) * (n + n_i) / (2 * n_i)))
    if n == n_i:
        assert_close(weight[n:], keep_of(inputs))
    of_batch, of_class = 0, 0
    for temperature in TEMPERATURES:
        s, t = (softened(torch.cat(x), temperature) for x in (rows[:2], rows[2:]))
        of_batch = of_batch + 0.9 * (weight.outer(weight) * (s @ s.T - t @ t.T).square()).sum() / (n + n_i)
        of_class = of_class + 0.9 * ((s.T * weight) @ s - (t.T * weight) @ t).square().sum() / 11
    parts = DAKDLoss(levels=("instance", "class", "batch_gram", "class_gram"), lam_batch_gram=2)(*inputs)
    plain = DAKDLoss()(*inputs)
    assert_close(parts["batch_gram"], of_batch)
    assert_close(parts["class_gram"], of_class)
    assert_close(parts["loss"], plain["loss"] + 2 * of_batch + 0.5 * of_class)
    assert_close(parts["kept"], plain["kept"])
    alone = DAKDLoss(levels=("class_gram",))(*inputs)
    assert_close(alone["loss"], 0.5 * of_class)
    assert alone["instance"] == alone["class"] == 0
    ours, theirs = (
        torch.autograd.grad(x, inputs[:2]) for x in (parts["loss"], plain["loss"] + 2 * of_batch + 0.5 * of_class)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


def test_gram_levels_of_the_other_prototypes_and_without_standardisation():
    inputs = batch(6)
    swapped = [*inputs[:4], inputs[5], inputs[4]]
    options = {"levels": ("batch_gram",), "mask_rule": "none"}
    one, other = (DAKDLoss(**options)(*x)["loss"] for x in (inputs, swapped))
    assert_close(DAKDLoss(class_protos="cross", **options)(*inputs)["loss"], other)
    assert_close(DAKDLoss(class_protos="both", **options)(*inputs)["loss"], 0.5 * (one + other))
    rows = levels(inputs)["class"]
    s, t = (torch.cat(x).div(4).softmax(1) for x in (rows[:2], rows[2:]))
    plain = DAKDLoss(standardize="none", temperatures=[4], **options)(*inputs)
    assert_close(plain["batch_gram"], 0.9 * (s @ s.T - t @ t.T).square().sum() / 12)


def test_a_threshold_by_class():
    loss = DAKDLoss(mask_rule="freematch", num_classes=11, mask_momentum=0.9)
    sure = ClassThreshold(11, momentum=0.9)
    kept = []
    for seed in range(3):
        inputs = batch(9, 12, seed=seed)
        profile = torch.cat(levels(inputs)["class"][2:])
        keep = sure(profile, torch.arange(21) >= 9)[9:].double()
        parts = loss(*inputs)
        kept.append(keep.mean().item())
        assert_close(parts["kept"], keep.mean())
        assert_close(parts["class"], masked_class_level(inputs, torch.ones(9), keep))
    assert any(0 < share < 1 for share in kept)
    assert sorted(loss.state_dict()) == ["sure.share", "sure.threshold"]


def test_a_threshold_by_class_and_the_right_class():
    inputs, labels = labelled(24)
    profile = levels(inputs)["class"]
    labels["labels_i"] = torch.where(torch.arange(24) % 3 > 0, profile[3].argmax(1), labels["labels_i"])
    options = {"mask_rule": "freematch", "num_classes": 11, "mask_modalities": ("v", "r")}
    sure = ClassThreshold(11)(torch.cat(profile[2:]), torch.ones(48, dtype=torch.bool))
    right = torch.cat(profile[2:]).argmax(1) == torch.cat(tuple(labels.values()))
    parts = DAKDLoss(mask_require_correct=True, **options)(*inputs, **labels)
    assert_close(parts["kept"], (sure & right).double().mean())
    assert_close(DAKDLoss(**options)(*inputs)["kept"], sure.double().mean())


EVERY = [{"instance_mode": mode, **(CRD if mode == "crd" else {})} for mode in MODES]
EVERY += [
    {"levels": ("batch_gram", "class_gram"), "temperatures": (2, 4)},
    {"mask_rule": "freematch", "num_classes": 11},
]
every_option = pytest.mark.parametrize("options", EVERY, ids=lambda options: next(iter(options.values())))


@every_option
@pytest.mark.parametrize("variant", ["intended", "release"])
@pytest.mark.parametrize(("n", "n_i"), [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_few_rows(options, variant, n, n_i):
    inputs = batch(n, n_i)
    parts = DAKDLoss(variant=variant, mask_conf="class", **options)(*inputs)
    assert all(value.isfinite() for value in parts.values())
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(parts["loss"], inputs[:2]))


@every_option
def test_one_graph_and_no_host_reads(options, monkeypatch):
    inputs = batch(dtype=torch.float32)
    loss = DAKDLoss(**options)
    compiled = torch.compile(DAKDLoss(**options), backend="aot_eager", fullgraph=True)
    traced = compiled(*inputs)
    traced = {name: (value, value.detach().clone()) for name, value in traced.items()}

    def refuse(*args, **kwargs):
        raise AssertionError("synchronises with the host")

    with monkeypatch.context() as patch:
        for name in ("item", "nonzero", "cpu", "tolist", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, refuse)
        eager = loss(*inputs)
        torch.autograd.grad(eager["loss"], inputs[:2], retain_graph=True)
    for name, value in eager.items():
        assert_close(traced[name][1], value.detach())
    for one, other in zip(
        *(torch.autograd.grad(x, inputs[:2]) for x in (eager["loss"], traced["loss"][0])), strict=True
    ):
        assert_close(one, other)


@pytest.mark.parametrize("options", [o for o in EVERY if "memory_dim" not in o and "mask_rule" not in o], ids=str)
def test_an_equal_student_has_no_loss(options):
    _, _, *rest = batch(8)
    parts = DAKDLoss(**options)(*(x.clone() for x in rest[:2]), *rest)
    assert parts["loss"].abs() < 1e-12
