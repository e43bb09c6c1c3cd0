"""DAKDLoss against the objective of spec dakd 5, written step by step, and the oracles of its section 14."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from vifast.losses import DAKDLoss

TEMPERATURES = (2, 3, 4, 5, 6)


def batch(n=8, n_i=None, d=48, k=11, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rows(m):
        return torch.randn(m, d, generator=generator, dtype=torch.float64).to(dtype)

    n_i = n if n_i is None else n_i
    students = [rows(n).requires_grad_(), rows(n_i).requires_grad_()]
    return [*students, *(normalize(rows(m)) for m in (n, n_i, k, k))]


def divergences(student, teacher):
    """D_T of every row and temperature, [N, 5]."""
    z_s, z_t = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (student, teacher))
    columns = []
    for t in TEMPERATURES:
        log_p, log_q = (z_t / t).log_softmax(1), (z_s / t).log_softmax(1)
        columns.append(t**2 * (log_p.exp() * (log_p - log_q)).sum(1))
    return torch.stack(columns, 1)


def levels(batch, tau=0.05):
    """Both levels as (student_v, student_i, teacher_v, teacher_i) logits."""
    *features, to_v, to_i = batch
    return {
        "instance": features,
        "class": [x @ (to_v, to_i)[m % 2].T / tau for m, x in enumerate(features)],
    }


def confidence(logits):
    return logits.softmax(1).amax(1)


def intended(batch):
    rows = levels(batch)
    sure = confidence(rows["class"][3])
    keep = (sure >= sure.quantile(0.5)).double()
    parts = {}
    for level, (s_v, s_i, t_v, t_i) in rows.items():
        parts[level] = 0.9 * (divergences(s_v, t_v).sum(1).mean() + (keep * divergences(s_i, t_i).sum(1)).mean())
    return parts | {"loss": 0.5 * parts["instance"] + 0.5 * parts["class"], "kept": keep.mean()}


def release(batch):
    """The public code's steps: its "strong" rows are visible, its "weak" rows infrared, its mask a scalar."""
    total, shares = 0, []
    for s_v, s_i, t_v, t_i in levels(batch).values():
        sure = confidence(t_i)
        share = (sure <= sure.quantile(0.5)).double().mean()
        d_v, d_i = divergences(s_v, t_v).mean(0), divergences(s_i, t_i).mean(0)
        for t, temperature in enumerate(TEMPERATURES):
            strong = d_v if temperature in (3, 4, 5) else d_i
            total = total + 0.5 * 0.9 * (strong[t] + share * d_i[t])
        shares.append(share)
    return {"loss": total, "kept": torch.stack(shares).mean()}


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


def masked_class_level(inputs, keep_v, keep_i, norm_v=None, norm_i=None):
    s_v, s_i, t_v, t_i = levels(inputs)["class"]
    d_v, d_i = divergences(s_v, t_v).sum(1), divergences(s_i, t_i).sum(1)
    return 0.9 * ((keep_v * d_v).sum() / (norm_v or len(d_v)) + (keep_i * d_i).sum() / (norm_i or len(d_i)))


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


@pytest.mark.parametrize(("variant", "most"), [("intended", 12), ("release", 16)])
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
    for options in ({}, {"variant": "release"}, {"mask_rule": "ema"}, {"mask_rule": "fixed"}):
        torch.autograd.grad(DAKDLoss(**options)(*inputs)["loss"], inputs[:2])


def test_it_shows_its_options():
    assert repr(DAKDLoss(variant="release", levels=("class",), temperatures=[4])) == (
        "DAKDLoss(variant='release', levels=('class',), temperatures=(4.0,))"
    )
    assert not DAKDLoss().state_dict()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variant": "paper"}, ValueError, "variant: expected one of intended, release, got 'paper'"),
        ({"temperatures": 4}, TypeError, "temperatures: expected a sequence of numbers, got int"),
        ({"temperatures": (0,)}, ValueError, r"temperatures\[0\]: expected a number above 0, got 0"),
        ({"temp_weights": (1, 2)}, ValueError, "temp_weights: expected 5 numbers, got 2"),
        ({"kd_weight": -1}, ValueError, "kd_weight: expected at least 0, got -1"),
        ({"lam_instance": "1"}, TypeError, "lam_instance: expected a number, got str"),
        ({"lam_class": -1}, ValueError, "lam_class: expected at least 0, got -1"),
        ({"class_temp": 0}, ValueError, "class_temp: expected a number above 0, got 0"),
        ({"levels": "class"}, TypeError, "levels: expected a collection of instance, class, got str"),
        ({"levels": ()}, ValueError, "levels: expected at least one of instance, class, got none"),
        ({"levels": ("logit",)}, ValueError, "levels: expected one of instance, class, got 'logit'"),
        ({"standardize": "l2"}, ValueError, "standardize: expected one of zscore, none, got 'l2'"),
        ({"ddof": 2}, ValueError, "ddof: expected one of 0, 1, got 2"),
        ({"eps": -1}, ValueError, "eps: expected at least 0, got -1"),
        ({"class_protos": "all"}, ValueError, "class_protos: expected one of own, cross, both, got 'all'"),
        ({"mask_rule": "top"}, ValueError, "mask_rule: expected one of percentile, fixed, ema, none, got 'top'"),
        ({"mask_q": 101}, ValueError, r"mask_q: expected 0 to 100, got 101"),
        ({"mask_keep": "mid"}, ValueError, "mask_keep: expected one of high, low, got 'mid'"),
        ({"mask_conf": "both"}, ValueError, "mask_conf: expected one of class, own, got 'both'"),
        ({"mask_modalities": ("x",)}, ValueError, "mask_modalities: expected one of v, r, got 'x'"),
        ({"mask_norm": "sum"}, ValueError, "mask_norm: expected one of batch, kept, got 'sum'"),
        ({"mask_threshold": 2}, ValueError, r"mask_threshold: expected 0 to 1, got 2"),
        ({"mask_momentum": -1}, ValueError, r"mask_momentum: expected 0 to 1, got -1"),
        ({"plain_kd": 1}, TypeError, "plain_kd: expected True or False, got int"),
    ],
)
def test_a_wrong_option_is_named(options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        DAKDLoss(**options)


@pytest.mark.parametrize(
    ("place", "change", "error", "message"),
    [
        (0, lambda x: x[0], ValueError, r"student_v: expected shape \[N, D\], got \[48\]"),
        (1, lambda x: x[:, :5], ValueError, r"student_i: expected 48 columns as in student_v, got \[8, 5\]"),
        (2, lambda x: x[:3], ValueError, r"teacher_v: expected shape \[8, 48\] as student_v, got \[3, 48\]"),
        (3, lambda x: x[:3], ValueError, r"teacher_i: expected shape \[8, 48\] as student_i, got \[3, 48\]"),
        (3, lambda x: x.float(), TypeError, "teacher_i: expected torch.float64 as student_v, got torch.float32"),
        (4, lambda x: x.long(), TypeError, "prototypes_v: expected a floating-point tensor, got torch.int64"),
        (5, lambda x: x[:3], ValueError, r"prototypes_i: expected shape \[11, 48\] as prototypes_v, got \[3, 48\]"),
        (5, lambda x: x.tolist(), TypeError, r"prototypes_i: expected a tensor \[N, D\], got list"),
    ],
)
def test_a_wrong_tensor_is_named(place, change, error, message):
    inputs = batch()
    inputs[place] = change(inputs[place])
    with pytest.raises(error, match=f"^{message}$"):
        DAKDLoss()(*inputs)


def test_wrong_prototypes_are_named():
    *features, to_v, to_i = batch()
    with pytest.raises(ValueError, match=r"^prototypes_v: expected 48 columns as in student_v, got \[11, 5\]$"):
        DAKDLoss()(*features, to_v[:, :5], to_i[:, :5])
    with pytest.raises(ValueError, match=r"^prototypes_v: expected device cpu as student_v, got meta$"):
        DAKDLoss()(*features, to_v.to("meta"), to_i.to("meta"))
