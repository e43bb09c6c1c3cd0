import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from vifast import systems
from vifast.systems.dakd import DAKD, DAKDExits, DAKDOptions
from vifast.systems.dakd.exits import exit_terms

TINY = {"backbone": "resnet_tiny", "backbone_width": 4, "non_local": (0, 0, 1, 0), "teacher_mode": "exits"}
CLASSES, ROWS = 6, 16


def build(**options):
    torch.manual_seed(0)
    return DAKD.build(DAKDOptions(**{**TINY, **options}), num_classes=CLASSES).train()


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(ROWS, 3, 32, 16, generator=generator)
    return {"image": images, "label": torch.arange(ROWS) // 4, "modality": torch.tensor([1, 0]).repeat(ROWS // 2)}


def test_terms_worked_out_by_hand():
    log3 = math.log(3)
    feat, end = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    logits, end_logits = torch.tensor([[0.0, 0.0], [0.0, log3]]), torch.tensor([[0.0, 2 * log3], [0.0, log3]])
    terms = exit_terms(feat, logits, end, end_logits, torch.tensor([0, 1]), temperature=2.0)
    # At temperature 2 the first row is 1/2, 1/2 and its teacher 1/4, 3/4; the second is its teacher's.
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert terms["kl"].item() == pytest.approx(4 * divergence / 2)
    assert terms["ce"].item() == pytest.approx((math.log(2) - math.log(0.75)) / 2)
    assert terms["hint"].item() == pytest.approx((0.6**2 + 0.2**2) / 2)


def test_nothing_flows_into_the_end():
    rows = [torch.randn(4, columns, requires_grad=True) for columns in (5, 3, 5, 3)]
    terms = exit_terms(*rows, torch.tensor([0, 1, 2, 0]), temperature=3.0)
    feat, logits, end, end_logits = torch.autograd.grad(sum(terms.values()), rows, allow_unused=True)
    assert feat.abs().sum() > 0
    assert logits.abs().sum() > 0
    assert end is None
    assert end_logits is None


def test_a_step_is_the_sum_of_the_definition():
    system = build(exit_share=0.25, exit_temp=2.0, exit_hint=0.125, bn_batches="joint")
    images, plain = batch(), copy.deepcopy(system)
    parts, maps = system(images), []
    end = plain.network(images["image"], maps=maps)
    *heads, last = plain.classifiers
    expected = {"ce": cross_entropy(last(end), images["label"])}
    for stage in (1, 2, 3):
        feat = plain.exits[stage - 1](maps[stage - 1])
        terms = exit_terms(feat, heads[stage - 1](feat), end, last(end), images["label"], temperature=2.0)
        expected[f"exit_{stage}"] = 0.75 * terms["ce"] + 0.25 * terms["kl"] + 0.125 * terms["hint"]
    assert list(parts) == ["loss", "ce", "exit_1", "exit_2", "exit_3"]
    for name, value in expected.items():
        assert_close(parts[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert_close(parts["loss"], sum(parts[name] for name in expected))


def test_exits_move_the_stages_before_them_and_never_the_end():
    system = build()
    parts = system(batch())
    grads = {}
    for name in ("loss", "ce"):
        system.zero_grad()
        parts[name].backward(retain_graph=True)
        grads[name] = {key: p.grad for key, p in system.named_parameters() if p.requires_grad}
    assert all(value is not None for value in grads["loss"].values())
    for key, value in grads["loss"].items():
        if key.startswith(("network.trunk.layer4.", "network.pool.", "network.neck.", "classifiers.3.")):
            assert torch.equal(value, grads["ce"][key]), key
        elif key.startswith("network.trunk."):
            assert not torch.equal(value, grads["ce"][key]), key
        elif not key.startswith("network."):
            assert grads["ce"][key] is None, key


def test_modalities_have_statistics_of_their_own():
    images, system = batch(), build()
    order = images["modality"].argsort(stable=True)
    sorted_parts = copy.deepcopy(system)({name: value[order] for name, value in images.items()})
    parts = system(images)
    assert all(torch.equal(value, sorted_parts[name]) for name, value in parts.items())
    assert not torch.equal(parts["loss"], build(bn_batches="joint")(images)["loss"])


def test_features_need_the_end_alone():
    system = build().eval()

    def refuse(*args):
        raise AssertionError("an exit is computed")

    for module in system.exits:
        module.register_forward_pre_hook(refuse)
    feat = system.embed(batch())
    assert_close(feat.norm(dim=1), torch.ones(ROWS))
    frozen = DAKD.build(DAKDOptions(**{**TINY, "teacher_mode": "frozen"}), num_classes=CLASSES).eval()
    frozen.network.load_state_dict(system.network.state_dict())
    assert torch.equal(frozen.embed(batch()), feat)
    assert {name.partition(".")[0] for name in system.state_dict()} == {"network", "exits", "classifiers"}


def test_it_teaches_a_student():
    teacher, student = build(), DAKD.build(DAKDOptions(**{**TINY, "teacher_mode": "frozen"}), num_classes=CLASSES)
    feat = copy.deepcopy(teacher).eval().embed(batch())
    student.learn_from(teacher)
    images = batch()
    assert_close(student._taught(images["image"], images["modality"]), feat, rtol=1e-4, atol=1e-5)


def test_it_is_observed_by_exit():
    system, found = build(), {}
    system.observe = found.update
    parts, options = system(batch()), system.options
    assert {*found} == {f"exit_{term}_{stage}" for term in ("ce", "kl", "hint") for stage in (1, 2, 3)}
    for stage in (1, 2, 3):
        ce, kl, hint = (found[f"exit_{term}_{stage}"] for term in ("ce", "kl", "hint"))
        value = (1 - options.exit_share) * ce + options.exit_share * kl + options.exit_hint * hint
        assert_close(parts[f"exit_{stage}"].detach(), value)
    assert not any(value.requires_grad for value in found.values())


def test_compiled_trunk_gives_its_maps_too():
    system, images = build(), batch()
    parts = copy.deepcopy(system)(images)
    assert system.backbones()[0] is system.network.trunk
    system.network.trunk.compile(backend="eager", fullgraph=True)
    compiled = system(images)
    compiled["loss"].backward()
    assert_close(compiled, parts, rtol=1e-4, atol=1e-5)


def test_every_exit_and_the_end_learn_a_batch():
    system, images, trajectory = build(), batch(), []
    optimizer = torch.optim.Adam(system.parameters(), lr=1e-3)
    for _ in range(20):
        parts = system(images)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        trajectory.append(parts)
    assert all(trajectory[-1][name] < 0.7 * value for name, value in trajectory[0].items())


def test_only_the_options_know():
    assert systems.get("dakd").of(DAKDOptions()) is DAKD
    assert systems.get("dakd").of(DAKDOptions(**TINY)) is DAKDExits
    assert DAKD.needs_teacher
    assert not build().needs_teacher
    with pytest.raises(ValueError, match=r"^teacher: expected none, DAKDExits learns from labels alone$"):
        build().learn_from(build())
    with pytest.raises(ValueError, match=r"^teacher_mode: expected one of frozen, ema, got 'exits'$"):
        DAKD(DAKDOptions(**TINY), num_classes=CLASSES)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"student_init": "teacher"}, "student_init: expected 'imagenet' for teacher_mode=exits, got 'teacher'"),
        ({"teacher_view": "weak"}, "teacher_view: expected 'shared' for teacher_mode=exits, got 'weak'"),
        ({"teacher_momentum": 0.9}, r"teacher_momentum: expected 0\.999 for teacher_mode=exits, got 0\.9"),
        ({"proto_refresh": "epoch"}, "proto_refresh: expected 'never' for teacher_mode=exits, got 'epoch'"),
        ({"variant": "release"}, "variant: expected 'intended' for teacher_mode=exits, got 'release'"),
        ({"lam_id": 0.5}, r"lam_id: expected 0 for teacher_mode=exits, got 0\.5"),
        ({"exit_share": 1.5}, r"exit_share: expected 0 to 1, got 1\.5"),
        ({"exit_temp": 0.0}, r"exit_temp: expected a number above 0, got 0\.0"),
        ({"exit_hint": -1.0}, r"exit_hint: expected .*, got -1\.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_of_a_teacher_or_of_dakd_s_objective_are_refused(option, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        build(**option)
