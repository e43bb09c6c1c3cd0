import contextlib
import copy
import inspect

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

import vifast
from vifast.losses import DAKDLoss
from vifast.systems.agw import AGW, AGWOptions
from vifast.systems.dakd import DAKD, DAKDOptions
from vifast.systems.embedding import EmbeddingNetwork

TINY = {"backbone": "resnet_tiny", "backbone_width": 4, "non_local": (0, 0, 1, 0)}
CLASSES, ROWS = 6, 16


class Images:
    """Two drawn images of every identity and modality."""

    def __init__(self, system):
        self.system = system
        self.labels = torch.arange(CLASSES).repeat(4)
        self.modality = torch.arange(2).repeat_interleave(2 * CLASSES)
        self.image = torch.randn(4 * CLASSES, 3, 32, 16, generator=torch.Generator().manual_seed(3))

    def features(self, embed):
        training = self.system.training
        self.system.eval()
        with torch.no_grad():
            feat = embed({"image": self.image, "modality": self.modality})
        self.system.train(training)
        return feat


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(ROWS, 3, 32, 16, generator=generator, dtype=torch.float64).to(dtype),
        "label": torch.arange(ROWS) // 4,
        "modality": torch.tensor([1, 0]).repeat(ROWS // 2),
    }


def trained(kind=AGW, options=AGWOptions, **changes):
    """A teacher whose statistics and shifts are no longer those of the start."""
    torch.manual_seed(7)
    teacher = kind.build(options(**TINY, **changes), num_classes=CLASSES)
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    return teacher.eval()


def student(teacher=None, *, dtype=torch.float32, **options):
    torch.manual_seed(0)
    dakd = DAKD.build(DAKDOptions(**TINY, **options), num_classes=CLASSES).to(dtype)
    dakd.learn_from((trained() if teacher is None else teacher).to(dtype))
    images = Images(dakd)
    images.image = images.image.to(dtype)
    dakd.train().start_epoch(0, images)
    return dakd


def test_every_option_of_the_objective_is_one_of_the_system():
    known = {name: parameter.default for name, parameter in inspect.signature(DAKDLoss).parameters.items()}
    options = DAKDOptions()
    given = {name: getattr(options, name) for name in known if hasattr(options, name)}
    assert known.keys() - given.keys() == {"num_classes", "memory_dim", "temperature_fn"}
    assert given == {name: known[name] for name in given}


@pytest.mark.parametrize("variant", ["intended", "release"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_step_is_the_separate_forwards_of_the_definition(variant, repeats):
    """dakd 14.8 and 14.9: of student and teacher, in float64; the release runs them twice and takes the second."""
    teacher = trained(DAKD, DAKDOptions)
    dakd = student(copy.deepcopy(teacher), dtype=torch.float64, variant=variant, bn_update_repeats=repeats)
    plain = EmbeddingNetwork(dakd.options).double()
    plain.load_state_dict(dakd.network.state_dict())
    images = batch(torch.float64)
    sides = [{name: value[images["modality"] == m] for name, value in images.items()} for m in (0, 1)]
    parts = dakd(images)
    teacher = teacher.double()
    for _ in range(repeats):
        students = [plain(side["image"]) for side in sides]
        with torch.no_grad():
            teachers = [teacher.embed(side) for side in sides]
    expected = DAKDLoss(variant=variant)(*students, *teachers, dakd.prototypes_v, dakd.prototypes_i)
    for name, value in expected.items():
        assert_close(parts[name], value, rtol=1e-9, atol=1e-12)
    parts["loss"].backward()
    expected["loss"].backward()
    scale = max(p.grad.abs().max().item() for p in plain.parameters() if p.requires_grad)
    for (name, own), other in zip(dakd.network.named_parameters(), plain.parameters(), strict=True):
        if own.requires_grad:
            assert_close(own.grad, other.grad, rtol=1e-6, atol=1e-9 * scale, msg=name)
    assert_close(dakd.network.state_dict(), plain.state_dict())


def test_a_teacher_of_a_view_of_its_own():
    """dakd 4: the student sees what it saw before, the teacher the weak images of the same rows."""
    images = batch()
    images["weak"] = images["image"].flip(3)
    dakd, seen = student(teacher_view="weak"), {}
    dakd.network.register_forward_pre_hook(lambda module, given: seen.update(student=given[0]))
    dakd._taught, taught = (lambda rows, modality: seen.update(teacher=rows) or taught(rows, modality)), dakd._taught
    loss = dakd(images)["loss"]
    order = images["modality"].argsort(stable=True)
    assert torch.equal(seen["student"], images["image"][order])
    assert torch.equal(seen["teacher"], images["weak"][order])
    shared = student()
    assert torch.equal(student()(batch())["loss"], shared(images)["loss"])  # which leaves the weak ones alone
    assert not torch.equal(loss, student()(batch())["loss"])
    with pytest.raises(ValueError, match="batch: expected weak images for teacher_view=weak"):
        dakd(batch())


def test_joint_statistics_are_those_of_the_whole_batch():
    dakd = student(bn_batches="joint")
    plain = EmbeddingNetwork(dakd.options)
    plain.load_state_dict(dakd.network.state_dict())
    images = batch()
    dakd(images)
    plain(torch.cat([images["image"][images["modality"] == m] for m in (0, 1)]))
    assert_close(dakd.network.state_dict(), plain.state_dict())


@pytest.mark.parametrize("kind", [(AGW, AGWOptions), (DAKD, DAKDOptions)], ids=["agw", "dakd"])
def test_the_teacher_joint_and_folded_is_the_teacher(kind):
    """dakd 14.8 and 14.9, in float32."""
    teacher = trained(*kind)
    images = batch()
    with torch.no_grad():
        expected = torch.cat([
            copy.deepcopy(teacher).embed({name: value[i : i + 4] for name, value in images.items()})
            for i in range(0, ROWS, 4)
        ])  # fmt: skip
    dakd = student(teacher)
    got = dakd._taught(images["image"], images["modality"])
    assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert not got.requires_grad
    kept = {name for name, m in dakd.teacher.module.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert all("non_local" in name for name in kept)


def test_the_teacher_is_no_part_of_the_student():
    dakd = student()
    alone = DAKD.build(DAKDOptions(**TINY), num_classes=CLASSES)
    assert dakd.state_dict().keys() == alone.state_dict().keys()
    assert {name.partition(".")[0] for name in dakd.state_dict()} == {"network", "prototypes_v", "prototypes_i"}
    alone.load_state_dict(dakd.state_dict())
    images = batch()
    assert torch.equal(alone.eval().embed(images), dakd.eval().embed(images))
    with pytest.raises(RuntimeError, match="teacher: expected one before the first step"):
        alone.train()(images)
    dakd.train()
    assert not any(module.training for module in dakd.teacher.module.modules())
    assert not any(p.requires_grad for p in dakd.teacher.module.parameters())
    assert all(value.dtype == torch.float64 for value in dakd.double().teacher.module.parameters())


def test_a_step_changes_the_student_alone():
    dakd = student()
    before = copy.deepcopy(dakd.teacher.module.state_dict())
    dakd(batch())["loss"].backward()
    assert_close(dakd.teacher.module.state_dict(), before, rtol=0, atol=0)
    without = [name for name, p in dakd.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_order_of_a_batch_does_not_matter():
    images, dakd = batch(), student()
    halves = images["modality"].argsort(stable=True)
    parts = [copy.deepcopy(dakd)(rows) for rows in (images, {name: value[halves] for name, value in images.items()})]
    assert all(torch.equal(value, parts[1][name]) for name, value in parts[0].items())


def test_prototypes_are_unit_class_means_of_the_teacher_by_modality():
    teacher = trained()
    dakd = student(copy.deepcopy(teacher))
    images = Images(dakd)
    with torch.no_grad():
        feat = teacher.embed({"image": images.image, "modality": images.modality})
    for modality, prototypes in enumerate((dakd.prototypes_v, dakd.prototypes_i)):
        own = images.modality == modality
        means = torch.stack([feat[own & (images.labels == k)].mean(0) for k in range(CLASSES)])
        assert_close(prototypes, normalize(means), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("refresh", "moved"), [("never", False), ("epoch", True)])
def test_prototypes_are_made_once_or_each_epoch(refresh, moved):
    dakd = student(proto_refresh=refresh)
    before = dakd.prototypes_v.clone()
    images = Images(dakd)
    images.image = images.image.flip(0)
    dakd.start_epoch(1, images)
    assert torch.equal(before, dakd.prototypes_v) != moved


def test_an_identity_of_one_modality_has_a_prototype_of_zeros():
    dakd = student()
    images = Images(dakd)
    images.labels[(images.modality == 1) & (images.labels == 2)] = 3
    dakd.start_epoch(0, images)
    assert not dakd.prototypes_i[2].any()
    assert dakd(batch())["loss"].isfinite()


def test_a_teacher_of_another_width_is_refused():
    dakd = DAKD.build(DAKDOptions(**TINY), num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"^teacher: expected features of width 32, got 64$"):
        dakd.learn_from(AGW.build(AGWOptions(**{**TINY, "backbone_width": 8}), num_classes=CLASSES))
    dakd = DAKD.build(DAKDOptions(**TINY, image_size=(48, 40)), num_classes=CLASSES)
    teacher, sizes = trained(), []

    def refuses(batch):
        sizes.append(batch["image"].shape)
        raise RuntimeError("too\nlarge")

    teacher.embed = refuses
    with pytest.raises(ValueError, match=r"^teacher: .* takes images of 48 x 40, got AGW \(too large\)$"):
        dakd.learn_from(teacher)
    assert sizes == [(2, 3, 48, 40)]
    with pytest.raises(ValueError, match=r"^teacher: expected none, AGW learns from labels alone$"):
        trained().learn_from(dakd)


@pytest.mark.parametrize("option", ["student_init=teacher", "teacher_mode=ema"])
def test_options_of_the_same_network_refuse_another(option):
    dakd = DAKD.build(DAKDOptions(**TINY, **dict([option.split("=")])), num_classes=CLASSES)
    with pytest.raises(ValueError, match=f"^teacher: expected the student's network for {option}, got another of AGW$"):
        dakd.learn_from(trained())


def test_a_student_may_start_as_its_teacher():
    teacher = trained(DAKD, DAKDOptions)
    dakd = student(copy.deepcopy(teacher), student_init="teacher")
    assert_close(dakd.network.state_dict(), teacher.network.state_dict(), rtol=0, atol=0)


def test_a_following_teacher_is_an_average_of_the_student_and_part_of_the_state():
    teacher = trained(DAKD, DAKDOptions)
    dakd = student(copy.deepcopy(teacher), teacher_mode="ema", teacher_momentum=0.75)
    name = "trunk.layer3.0.conv1.weight"
    before, own = teacher.network.state_dict()[name], dakd.network.state_dict()[name]
    dakd(batch())["loss"].backward()
    dakd.end_step()
    now = dakd.state_dict()[f"follower.{name}"]
    assert_close(now, 0.75 * before + 0.25 * own)
    assert not dakd.follower.training
    assert all(p.grad is None for p in dakd.follower.parameters())
    with pytest.raises(ValueError, match=r"^teacher_momentum: expected 0 to 1, got 2$"):
        DAKD.build(DAKDOptions(**TINY, teacher_momentum=2), num_classes=CLASSES)


STUDY = [
    {"levels": ("instance", "class", "batch_gram", "class_gram")},
    *({"instance_mode": mode} for mode in ("relation_kl", "rkd_d", "rkd_a", "sp", "ickd", "crd")),
    {"class_mode": "dkd"},
    *({"mask_rule": rule} for rule in ("fixed", "ema", "freematch", "none")),
    {"mask_require_correct": True, "mask_modalities": ("v", "r"), "mask_norm": "kept"},
    {"lam_id": 0.5, "lam_tri": 0.5, "lam_nce": 0.5},
    {"class_protos": "both", "standardize": "none"},
    {"plain_kd": True},
]


@pytest.mark.parametrize("options", STUDY, ids=str)
def test_options_for_study_take_a_step(options):
    dakd = student(**options)
    parts = dakd(batch())
    parts["loss"].backward()
    assert all(value.isfinite() for value in parts.values())
    without = [name for name, p in dakd.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_what_the_sums_hide_is_observed():
    dakd, found = student(mask_rule="none"), {}
    dakd.observe = found.update
    parts = dakd(batch())
    for level in ("instance", "class"):
        values = [found[f"{level}_{m}_T{t}"] for m in "vr" for t in (2, 3, 4, 5, 6)]
        assert_close(0.9 * sum(values), parts[level].detach())
    assert found["confidence_r"].shape == (ROWS // 2,)
    assert ((found["confidence_v"] > 0) & (found["confidence_v"] <= 1)).all()
    assert not any(value.requires_grad for value in found.values())


def test_temperatures_may_follow_the_step():
    """dakd 5.4: of the built system, which knows the step from the loop."""
    dakd, seen = student(), []
    dakd.objective.temperature_fn = lambda step: seen.append(step) or [t + step for t in dakd.objective.temperatures]
    for step in (0, 3):
        dakd.step = step
        expected = student(temperatures=[t + step for t in (2, 3, 4, 5, 6)])(batch())
        assert_close(copy.deepcopy(dakd)(batch()), expected, rtol=0, atol=0)
    assert seen == [0, 3]


@pytest.mark.parametrize("variant", ["intended", "release"])
def test_twenty_steps_by_the_ops_are_those_by_the_definitions(variant):
    losses = []
    for path in (contextlib.nullcontext, vifast.use_reference):
        dakd = student(dtype=torch.float32, variant=variant)
        optimizer = torch.optim.Adam(dakd.parameters(), lr=3.5e-4)
        trajectory = []
        for _ in range(20):
            with path():
                parts = dakd(batch())
                optimizer.zero_grad()
                parts["loss"].backward()
            optimizer.step()
            trajectory.append(parts["loss"].detach())
        losses.append(torch.stack(trajectory))
    assert losses[0][-1] < 0.7 * losses[0][0]
    assert_close(*losses, rtol=2e-3, atol=0)


def test_a_step_reads_nothing_back(monkeypatch):
    teacher = trained(DAKD, DAKDOptions)
    dakd, images = student(teacher), batch()

    def refuse(*args, **kwargs):
        raise AssertionError("synchronises with the host")

    for name in ("item", "tolist", "nonzero", "cpu", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    dakd(images)["loss"].backward()
