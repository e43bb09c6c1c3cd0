"""DAKDLoss against the objective of spec dakd 5, written step by step, and the oracles of its section 14."""

import pytest
import torch
from dakd_oracle import batch, confidence, divergences, intended, levels, masked_class_level, release
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from vifast.losses import DAKDLoss


def check_parts(actual, wanted, leaves, rtol=1e-10):
    for name, value in wanted.items():
        assert_close(actual[name], value, rtol=rtol, atol=1e-13)
    ours, theirs = (torch.autograd.grad(parts["loss"], leaves) for parts in (actual, wanted))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("n", "n_i"), [(8, 8), (33, 33), (6, 10), (1, 1)])
def test_intended_step_by_step(n, n_i):
    inputs = batch(n, n_i)
    check_parts(DAKDLoss()(*inputs), intended(inputs), inputs[:2])


@pytest.mark.parametrize(("n", "kept"), [(8, 0.5), (32, 0.5), (33, 17 / 33)])
def test_release_is_the_coefficient_table_and_the_steps(n, kept):
    inputs = batch(n)
    parts = DAKDLoss(variant="release")(*inputs)
    check_parts(parts, release(inputs), inputs[:2])
    assert parts["kept"].item() == pytest.approx(kept, rel=1e-12)
    visible = torch.tensor([0, 0.45, 0.45, 0.45, 0]).double()
    infrared = 0.45 * kept + torch.tensor([0.45, 0, 0, 0, 0.45]).double()
    table = 0
    for s_v, s_i, t_v, t_i in levels(inputs).values():
        table = table + visible @ divergences(s_v, t_v).mean(0) + infrared @ divergences(s_i, t_i).mean(0)
    assert_close(parts["loss"], table)


def test_float32_is_close_to_float64():
    inputs = batch(32, d=512, k=100, dtype=torch.float32)
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    for variant in ("intended", "release"):
        ours, theirs = (DAKDLoss(variant=variant)(*x) for x in (inputs, exact))
        for name, value in ours.items():
            assert value.item() == pytest.approx(theirs[name].item(), rel=1e-5)
        grads = [torch.autograd.grad(p["loss"], x[:2]) for p, x in ((ours, inputs), (theirs, exact))]
        for one, other in zip(*grads, strict=True):
            assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("variant", ["intended", "release"])
def test_a_scaled_teacher_is_a_perfect_student(variant):
    inputs = batch(d=64)
    inputs[:2] = [(3 * x).detach().requires_grad_() for x in inputs[2:4]]
    parts = DAKDLoss(variant=variant)(*inputs)
    assert abs(parts["loss"].item()) < 1e-12
    for grad in torch.autograd.grad(parts["loss"], inputs[:2]):
        assert grad.abs().max() < 1e-7


def test_plain_kd_is_twice_the_unmasked_instance_level_at_temperature_four():
    inputs = batch()
    plain = DAKDLoss(plain_kd=True)(*inputs)
    half = DAKDLoss(temperatures=(4,), levels=("instance",), mask_rule="none")(*inputs)
    assert_close(plain["loss"], 2 * half["loss"])
    s_v, s_i, t_v, t_i = inputs[:4]
    wanted = 0.9 * (divergences(s_v, t_v)[:, 2].mean() + divergences(s_i, t_i)[:, 2].mean())
    assert_close(plain["loss"], wanted)
    assert plain["kept"].item() == half["kept"].item() == 1


@pytest.mark.parametrize("level", ["instance", "class"])
def test_one_level_alone_keeps_its_weight(level):
    inputs = batch()
    both, one = DAKDLoss()(*inputs), DAKDLoss(levels={level})(*inputs)
    assert_close(one["loss"], 0.5 * both[level])
    assert_close(one[level], both[level])
    other = {"instance": "class", "class": "instance"}[level]
    assert one[other].item() == 0


def test_parts_are_free_of_their_weights():
    inputs = batch()
    plain, heavy = DAKDLoss()(*inputs), DAKDLoss(lam_instance=2, lam_class=0.25)(*inputs)
    assert_close(heavy["instance"], plain["instance"])
    assert_close(heavy["class"], plain["class"])
    assert_close(heavy["loss"], 2 * plain["instance"] + 0.25 * plain["class"])


@pytest.mark.parametrize("q", [25, 50, 80])
@pytest.mark.parametrize("high", [True, False])
@pytest.mark.parametrize("modalities", [("r",), ("v",), ("v", "r")])
@pytest.mark.parametrize("norm", ["batch", "kept"])
def test_percentile_options(q, high, modalities, norm):
    inputs = batch(9, 12)
    sure = [confidence(x) for x in levels(inputs)["class"][2:]]
    theta = [x.quantile(q / 100) for x in sure]
    keep = [(x >= t if high else x <= t).double() for x, t in zip(sure, theta, strict=True)]
    keep = [k if m in modalities else torch.ones_like(k) for k, m in zip(keep, "vr", strict=True)]
    norms = [k.sum().item() for k in keep] if norm == "kept" else [None, None]
    options = {"mask_q": q, "mask_keep": "high" if high else "low", "mask_modalities": modalities, "mask_norm": norm}
    parts = DAKDLoss(**options)(*inputs)
    assert_close(parts["class"], masked_class_level(inputs, *keep, *norms))
    masked = torch.cat([k for k, m in zip(keep, "vr", strict=True) if m in modalities])
    assert_close(parts["kept"], masked.mean())


def test_own_confidence_masks_each_level_by_itself():
    inputs = batch(9)
    rows = levels(inputs)
    for level in ("instance", "class"):
        sure = confidence(rows[level][3])
        keep = (sure >= sure.quantile(0.5)).double()
        s_v, s_i, t_v, t_i = rows[level]
        wanted = 0.9 * (divergences(s_v, t_v).sum(1).mean() + (keep * divergences(s_i, t_i).sum(1)).mean())
        assert_close(DAKDLoss(mask_conf="own")(*inputs)[level], wanted)


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_fixed_threshold(threshold):
    inputs = batch(12)
    keep = (confidence(levels(inputs)["class"][3]) >= threshold).double()
    parts = DAKDLoss(mask_rule="fixed", mask_threshold=threshold)(*inputs)
    assert_close(parts["class"], masked_class_level(inputs, torch.ones_like(keep), keep))
    assert_close(parts["kept"], keep.mean())
    low = DAKDLoss(mask_rule="fixed", mask_threshold=threshold, mask_keep="low", mask_modalities=("v", "r"))
    assert low(*inputs)["kept"].isfinite()


def test_ema_threshold_follows_the_batches_in_training_only():
    loss = DAKDLoss(mask_rule="ema", mask_momentum=0.9)
    first, second, third = batch(12), batch(12, seed=1), batch(12, seed=2)
    sure = [confidence(levels(x)["class"][3]) for x in (first, second, third)]
    theta = sure[0].mean()
    assert_close(loss(*first)["kept"], (sure[0] >= theta).double().mean())
    theta = 0.9 * theta + 0.1 * sure[1].mean()
    assert_close(loss(*second)["kept"], (sure[1] >= theta).double().mean())
    loss.eval()
    assert_close(loss(*third)["kept"], (sure[2] >= theta).double().mean())
    assert_close(loss.state_dict()["threshold"][1].double(), theta, rtol=1e-6, atol=0)
    loss.train()
    third[3][0] = torch.nan
    loss(*third)
    assert_close(loss.threshold[1].double(), theta, rtol=1e-6, atol=0)


def test_prototypes_of_the_other_modality():
    inputs = batch()
    swapped = [*inputs[:4], inputs[5], inputs[4]]
    options = {"levels": ("class",), "mask_rule": "none"}
    own, cross = DAKDLoss(**options)(*inputs)["loss"], DAKDLoss(**options)(*swapped)["loss"]
    assert_close(DAKDLoss(class_protos="cross", **options)(*inputs)["loss"], cross)
    assert_close(DAKDLoss(class_protos="both", **options)(*inputs)["loss"], 0.5 * (own + cross))


def test_rows_as_they_are_and_temperature_weights():
    s_v, s_i, t_v, t_i, *prototypes = batch()
    options = {
        "temperatures": (1,),
        "temp_weights": (3,),
        "standardize": "none",
        "levels": ["instance"],
        "kd_weight": 1,
    }
    parts = DAKDLoss(mask_rule="none", **options)(s_v, s_i, t_v, t_i, *prototypes)
    wanted = 0
    for s, t in ((s_v, t_v), (s_i, t_i)):
        wanted = wanted + 3 * torch.nn.functional.kl_div(
            s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True
        )
    assert_close(parts["instance"], wanted)


def test_release_tables_of_other_masks():
    inputs = batch()
    rows = levels(inputs)["instance"]
    d_v, d_i = divergences(rows[0], rows[2]).mean(0), divergences(rows[1], rows[3]).mean(0)
    none = DAKDLoss(variant="release", mask_rule="none")(*inputs)
    assert_close(none["instance"], 0.9 * (d_v[1:4].sum() + d_i.sum() + d_i[[0, 4]].sum()))
    both = DAKDLoss(variant="release", mask_modalities=("v", "r"))(*inputs)
    assert_close(both["instance"], 0.9 * (0.5 * d_v[1:4].sum() + 0.5 * d_i.sum() + d_i[[0, 4]].sum()))


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("variant", "most"), [("intended", 10), ("release", 12)])
def test_few_dispatches(variant, most):
    inputs = batch(32, dtype=torch.float32)
    with Count() as count:
        DAKDLoss(variant=variant)(*inputs)
    assert len(count.calls) <= most


def test_one_graph():
    inputs = batch(dtype=torch.float32)
    loss = DAKDLoss()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager, traced = loss(*inputs), compiled(*inputs)
    for name, value in eager.items():
        assert_close(traced[name], value)
    for one, other in zip(*(torch.autograd.grad(x["loss"], inputs[:2]) for x in (eager, traced)), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(("n", "n_i"), [(0, 0), (0, 3), (3, 0)])
def test_a_modality_without_rows(n, n_i):
    inputs = batch(n, n_i)
    for variant in ("intended", "release"):
        parts = DAKDLoss(variant=variant)(*inputs)
        assert all(value.isfinite() for value in parts.values())
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(parts["loss"], inputs[:2]))


def test_a_bad_student_row_stays_in_its_row():
    inputs = batch(dtype=torch.float32)
    with torch.no_grad():
        inputs[1][3, 2] = torch.nan
    loss = DAKDLoss()(*inputs)["loss"]
    assert not loss.isfinite()
    visible, infrared = torch.autograd.grad(loss, inputs[:2])
    assert visible.isfinite().all()
    assert infrared[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()


def test_the_host_is_never_asked(monkeypatch):
    inputs = batch(dtype=torch.float32)

    def refuse(*args, **kwargs):
        raise AssertionError("synchronises with the host")

    for name in ("item", "nonzero", "cpu", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    labels = {"labels_v": torch.arange(8) // 2, "labels_i": torch.arange(8) // 2}
    more = {
        "mask_require_correct": True,
        "class_mode": "dkd",
        "instance_mode": "relation_kl",
        "lam_tri": 1,
        "lam_nce": 1,
    }
    for options in ({}, {"variant": "release"}, {"mask_rule": "ema"}, {"mask_rule": "fixed"}, more):
        torch.autograd.grad(DAKDLoss(**options)(*inputs, **labels)["loss"], inputs[:2])


def test_it_shows_its_options():
    assert repr(DAKDLoss(variant="release", levels=("class",), temperatures=[4])) == (
        "DAKDLoss(variant='release', levels=('class',), temperatures=(4.0,))"
    )
    assert not DAKDLoss().state_dict()
