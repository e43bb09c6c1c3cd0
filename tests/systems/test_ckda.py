"""CKDA's network and step."""

import copy
import dataclasses

import pytest
import torch
from ckda_cases import QUIET, TINY, Images, batch, ckda, moved, write_stage, written_out
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import vifast
from vifast.systems.ckda import CKDA, PRESETS, CKDANetwork, CKDAOptions

PARTS = {"loss", "base", "ce", "triplet", "center", "prompt", "intra", "inter"}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def previous(tmp_path):
    system = moved(ckda())
    torch.nn.init.normal_(system.network.neck.running_mean)  # else the neck is all but the identity
    write_stage(tmp_path / "one", system)
    return str(tmp_path / "one")


def later(previous, **options):
    """A second stage whose weights have left the teacher's."""
    return moved(ckda(previous=previous, **options), seed=8)


def test_parameter_counts():
    """Spec ckda 2.3."""
    with torch.device("meta"):
        system = CKDA(CKDAOptions(), num_classes=206)
    network = system.network
    assert parameters(network.prompts) == 63_928
    assert parameters(network.neck) == 1_536
    assert parameters(network) == 85_876_408
    assert parameters(system) == 85_876_408 + 768 * 206
    assert [name for name, p in system.named_parameters() if not p.requires_grad] == ["network.neck.bias"]


def test_operations_of_the_shortened_block():
    """Spec ckda 12.0: 37.7 GFLOP an image, of which the class token's last block needs 0.51 in place of 3.124."""
    with torch.device("meta"):
        network = CKDANetwork(CKDAOptions()).eval()
        images, modality = torch.empty(1, 3, 256, 128), torch.empty(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        network.backbone(images, modality)
    assert counter.get_total_flops() / 1e9 == pytest.approx(0.248 + 11 * 3.124 + 0.51, rel=0.01)


def test_rates_differ_for_blocks_and_rest():
    system = ckda()
    names = {id(p): name for name, p in system.named_parameters()}
    groups = {group: {names[id(p)] for p in ps} for group, ps in system.parameter_groups().items()}
    assert {name.split(".")[2] for name in groups["blocks"]} == {"blocks", "patch_embed"}
    assert groups["rest"] >= {"network.backbone.cls_token", "network.backbone.pos_embed", "classifier.weight"}
    assert groups["blocks"] | groups["rest"] == set(names.values()) - {"network.neck.bias"}


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_is_its_formulas(previous, preset, stage):
    system = moved(ckda(preset=preset, **QUIET)) if stage == 1 else later(previous, preset=preset, **QUIET)
    system.double().train()
    images, other = batch(dtype=torch.float64), copy.deepcopy(system)
    parts = system(images)
    choices = {"clean": (10.0, True), "release": (0.1, False)}
    kappa, post_neck = choices[preset]
    wanted = written_out(other, images, kappa=kappa, post_neck=post_neck)
    assert parts.keys() == PARTS
    for name in PARTS:
        assert_close(parts[name], wanted[name], rtol=1e-9, atol=1e-12, msg=lambda words, name=name: f"{name}: {words}")
    for total in (parts, wanted):
        total["loss"].backward()
    for (name, one), two in zip(system.named_parameters(), other.parameters(), strict=True):
        if one.requires_grad:
            assert_close(one.grad, two.grad, rtol=1e-8, atol=1e-10, msg=lambda words, name=name: f"{name}: {words}")


def test_every_parameter_that_trains_gets_a_gradient(previous):
    system = later(previous).train()
    system(batch())["loss"].backward()
    assert [name for name, p in system.named_parameters() if p.requires_grad and p.grad is None] == []


def test_images_in_turns_are_images_in_halves(previous):
    """What a batch's layout must not change, for samplers have two."""
    system = later(previous, **QUIET).double().train()
    halves = batch(dtype=torch.float64)
    order = torch.arange(len(halves["image"])).view(2, -1).flip(0).T.reshape(-1)
    one = copy.deepcopy(system)(halves)
    other = system({name: value[order] for name, value in halves.items()})
    for name in PARTS:
        assert_close(one[name], other[name], rtol=1e-9, atol=1e-12)


def test_a_student_equal_to_its_teacher_pays_nothing(previous):
    system = ckda(previous=previous)
    system.eval()  # both by running statistics, without dropout
    parts = system(batch())
    for name in ("prompt", "intra", "inter"):
        assert_close(parts[name].item(), 0.0, rtol=0, atol=1e-6)
    release = ckda(previous=previous, preset="release", kappa=10.0).eval()(batch())
    assert release["intra"] > 1e-4  # R2: features before the neck are not those after it


def test_the_columns_that_no_patch_covers_are_moved_by_the_prompt_term_alone(previous):
    """R12, here the last 8 of 48 columns."""
    for terms, moves in ((("ce", "triplet"), False), (("ce", "prompt"), True)):
        system = later(previous, terms=terms, **QUIET).train()
        seen = {}
        hook = system.network.prompts.register_forward_hook(lambda m, i, out, seen=seen: seen.update(out=out))
        images = batch()
        parts = system(images)
        hook.remove()
        prompted, prompts = torch.autograd.grad(parts["loss"], seen["out"], allow_unused=True)
        assert prompted[..., 40:].eq(0).all()
        assert prompted[..., :40].ne(0).any()
        assert (prompts is not None and prompts[..., 40:].ne(0).any()) == moves


def test_the_teacher_is_no_part_of_the_weights_and_never_trains(previous):
    system, fresh = later(previous).train(), ckda()
    assert system.state_dict().keys() == fresh.state_dict().keys()
    assert parameters(system) == parameters(fresh)
    assert not system.teacher.module.training
    assert system.network.training
    before = {name: value.clone() for name, value in system.teacher.module.state_dict().items()}
    assert all(value.dtype == torch.float32 for value in before.values() if value.is_floating_point())
    system(batch())["loss"].backward()
    assert all(torch.equal(value, before[name]) for name, value in system.teacher.module.state_dict().items())
    assert {p.device.type for p in system.to("meta").teacher.module.parameters()} == {"meta"}


def test_the_teacher_is_cast_once_for_autocast(previous):
    system, images = later(previous).train(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        feat, prompts = system.teacher.module(images["image"], images["modality"])
        unit = system.teacher.module.unit(feat)
        old_feat, old_prompts = system._taught(images["image"], images["modality"])
    assert torch.equal(old_feat, unit)
    assert torch.equal(old_prompts, prompts)
    linear = system.teacher.module.backbone.blocks[0].mlp.fc1
    assert linear.weight.dtype == torch.bfloat16
    assert system.teacher.module.backbone.norm.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = system(images)
    assert {value.dtype for value in parts.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("terms", "teacher"),
    [(("ce", "triplet", "center"), False), (("ce", "prompt"), True), (("ce", "intra"), True), (("inter",), True)],
)
def test_left_out_terms_are_zero_and_the_rest_is_what_it_was(previous, terms, teacher):
    whole, part = (later(previous, **QUIET, **given).train() for given in ({}, {"terms": terms}))
    part.load_state_dict(whole.state_dict())  # the classifier is drawn anew
    one, other = whole(batch()), part(batch())
    assert (part.teacher is not None) == teacher
    for name in PARTS - {"loss", "base"}:
        assert_close(other[name], one[name] if name in terms else torch.zeros(()))


@pytest.mark.parametrize("off", [("specific",), ("common",), ("specific", "common")])
def test_prompts_can_be_left_out(tmp_path, off):
    options = dict.fromkeys(off, 0)
    write_stage(tmp_path, moved(ckda(**options)))
    system = later(str(tmp_path), **options).train()
    parts = system(batch())
    assert (parts["prompt"] > 0) == (len(off) == 1)
    assert (system.network.prompts is None) == (len(off) == 2)
    assert parts["intra"] > 0


def test_prompt_noise_is_a_choice(previous):
    """R10: with dropout and the batch's statistics, equal weights pay; without, they do not."""
    images = batch()
    noisy, quiet = (ckda(previous=previous, prompt_noise=noise).train() for noise in (True, False))
    assert noisy(images)["prompt"] > 1e-3
    before = {name: value.clone() for name, value in quiet.network.prompts.state_dict().items()}
    parts = quiet(images)
    assert_close(parts["prompt"].item(), 0.0, rtol=0, atol=1e-6)
    assert quiet.network.prompts.training
    moves = [name for name, value in quiet.network.prompts.state_dict().items() if not torch.equal(value, before[name])]
    assert moves, "the prompts that enter the network still see the batch"


def test_symmetric_anchors_are_a_choice():
    """R11."""
    systems = [moved(ckda(symmetric=symmetric, **QUIET)).train() for symmetric in (False, True)]
    systems[1].load_state_dict(systems[0].state_dict())
    one, other = (system(batch()) for system in systems)
    assert one["center"] != other["center"]
    assert one["triplet"] == other["triplet"]


def test_instance_norm_in_evaluation_is_a_choice():
    """R7."""
    images = batch()
    running, instance = (moved(ckda(mcp_in_eval=way)).eval() for way in ("running", "instance"))
    with torch.no_grad():
        whole = {way: system.embed(images) for way, system in (("running", running), ("instance", instance))}
        assert not torch.allclose(whole["running"], whole["instance"])
    assert_close(whole["instance"].norm(dim=1), torch.ones(len(images["image"])))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_sets_what_is_not_given(preset):
    options = CKDAOptions(preset=preset)
    assert {name: getattr(options, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert dataclasses.replace(options) == options
    for name, value in PRESETS["clean" if preset == "release" else "release"].items():
        assert getattr(CKDAOptions(preset=preset, **{name: value}), name) == value
        assert value != PRESETS[preset][name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "paper"}, "preset: expected one of clean, release, got 'paper'"),
        ({"merge": "half"}, "merge: expected one of fixed, adaptive, off, got 'half'"),
        ({"old_weight": 1.5}, "old_weight: expected 0 to 1, got 1.5"),
        ({"cka_student_feature": "neck"}, "cka_student_feature: expected one of pre_neck, post_neck, got 'neck'"),
        ({"mu": 2}, "mu: expected 0 to 1, got 2"),
        ({"terms": ("ce", "kl")}, "terms: expected one of .*, got 'kl'"),
        ({"backbone": "resnet50"}, "name: expected one of vit_base, vit_tiny_demo, got 'resnet50'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ckda(**options)


def test_imagenet_weights_start_the_backbone(tmp_path):
    source = ckda().network.backbone.state_dict()
    file = {name: value for name, value in source.items() if name != "modality_embed"}
    file["pos_embed"] = torch.randn(1, 1 + 14 * 14, 64)
    torch.save(file | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}, tmp_path / "vit.pth")
    backbone = ckda(weights=str(tmp_path / "vit.pth")).network.backbone
    for name, value in file.items():
        if name != "pos_embed":
            assert torch.equal(backbone.state_dict()[name], value), name
    assert backbone.pos_embed.shape == source["pos_embed"].shape


def test_ops_and_definitions_make_the_same_step(previous):
    images = batch()
    system = later(previous, **QUIET).train()
    one = copy.deepcopy(system)(images)
    with vifast.use_reference():
        other = system(images)
    for name in PARTS:
        assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_nothing_is_read_from_the_device_in_a_step(previous, request):
    system, images = later(previous).train(), batch()
    optimizer = torch.optim.AdamW([{"params": ps} for ps in system.parameter_groups().values()], fused=True)
    request.getfixturevalue("no_host_reads")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = system(images)
    parts["loss"].backward()
    optimizer.step()
    assert all(p.grad is not None for p in system.parameters() if p.requires_grad)


def test_retrieval_sees_the_images_modality(previous):
    system, images = later(previous).eval(), batch()
    assert TINY["image_size"] == tuple(images["image"].shape[2:])
    with torch.no_grad():
        feat = system.embed(images)
        turned = system.embed(images | {"modality": 1 - images["modality"]})
        one = system.embed({name: value[:1] for name, value in images.items()})
    assert not torch.allclose(feat, turned)
    assert_close(one, feat[:1], rtol=1e-4, atol=1e-5)
    assert Images(system).features(system.embed).shape == (12, 64)
