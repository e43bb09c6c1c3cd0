"""DAKDLoss: the options that its variants leave alone, and a message for every wrong argument."""

import pytest
import torch
from dakd_oracle import batch, confidence, labelled, levels, masked_class_level
from torch.nn.functional import normalize
from torch.testing import assert_close

from vifast.functional import decoupled_kl, triplet_loss
from vifast.losses import DAKDLoss


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, lambda sure: sure >= sure.quantile(0.5)),
        ({"mask_rule": "fixed", "mask_threshold": 0.4}, lambda sure: sure >= 0.4),
        ({"mask_rule": "none"}, lambda sure: sure >= 0),
    ],
)
def test_only_correct_rows_are_kept(options, rule):
    inputs, labels = labelled(24)
    teacher = levels(inputs)["class"][3]
    labels["labels_i"] = torch.where(torch.arange(24) % 3 > 0, teacher.argmax(1), labels["labels_i"])
    keep = rule(confidence(teacher)) & (teacher.argmax(1) == labels["labels_i"])
    assert 0 < keep.sum() < rule(confidence(teacher)).sum()
    parts = DAKDLoss(mask_require_correct=True, **options)(*inputs, **labels)
    assert_close(parts["class"], masked_class_level(inputs, torch.ones(24), keep.double()))
    assert_close(parts["kept"], keep.double().mean())
    alone = DAKDLoss(mask_require_correct=True, mask_conf="own", levels=("instance",), **options)(*inputs, **labels)
    assert alone["kept"] <= (teacher.argmax(1) == labels["labels_i"]).double().mean()


@pytest.mark.parametrize("variant", ["intended", "release"])
def test_relations_in_place_of_the_instance_level(variant):
    inputs = batch(9, 12)
    s_v, s_i, t_v, t_i = inputs[:4]
    plain = DAKDLoss(variant=variant)(*inputs)
    parts = DAKDLoss(variant=variant, instance_mode="relation_kl", relation_temp=0.2)(*inputs)
    assert_close(parts["class"], plain["class"])
    sure = confidence(levels(inputs)["class"][3] if variant == "intended" else t_i)
    keep = (sure >= sure.quantile(0.5) if variant == "intended" else sure <= sure.quantile(0.5)).double()
    keep = keep if variant == "intended" else keep.mean().expand(12)
    off = ~torch.eye(21, dtype=torch.bool)
    log_q, log_p = (
        (normalize(torch.cat(x)) @ normalize(torch.cat(x)).T / 0.2)[off].view(21, 20).log_softmax(1)
        for x in ((s_v, s_i), (t_v, t_i))
    )
    rows = 0.04 * (log_p.exp() * (log_p - log_q)).sum(1)
    wanted = 0.9 * (rows[:9].mean() + (keep * rows[9:]).mean())
    assert_close(parts["instance"], wanted)
    assert_close(parts["loss"], 0.5 * wanted + 0.5 * plain["class"])
    ours, theirs = (torch.autograd.grad(x, inputs[:2]) for x in (parts["instance"], wanted))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("class_protos", ["own", "cross", "both"])
def test_decoupled_class_level(class_protos):
    inputs, labels = labelled(9, 12)
    parts = DAKDLoss(class_mode="dkd", class_protos=class_protos)(*inputs, **labels)
    sure = confidence(levels(inputs)["class"][3])
    keep = (sure >= sure.quantile(0.5)).double()
    swapped = [*inputs[:4], inputs[5], inputs[4]]
    values = []
    for rows in (levels(inputs)["class"], levels(swapped)["class"]):
        d_v, d_i = (
            decoupled_kl(s, t, y, reduction="none") for s, t, y in zip(rows[:2], rows[2:], labels.values(), strict=True)
        )
        values.append(0.9 * (d_v.mean() + (keep * d_i).mean()))
    wanted = {"own": values[0], "cross": values[1], "both": 0.5 * sum(values)}[class_protos]
    assert_close(parts["class"], wanted)
    assert_close(parts["instance"], DAKDLoss()(*inputs)["instance"])


def test_supervised_terms():
    inputs, labels = labelled(8, 10)
    s_v, s_i = inputs[:2]
    logits = {
        f"logits_{m}": torch.randn(len(x), 4, dtype=torch.float64, requires_grad=True)
        for m, x in zip("vi", (s_v, s_i), strict=True)
    }
    plain = DAKDLoss()(*inputs)
    parts = DAKDLoss(lam_id=0.5, lam_tri=0.25, lam_nce=2)(*inputs, **labels, **logits)
    smooth = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    wanted = {
        "id": 0.5 * sum(smooth(logits[f"logits_{m}"], labels[f"labels_{m}"]) for m in "vi"),
        "tri": triplet_loss(s_v, labels["labels_v"], reference=s_i, reference_labels=labels["labels_i"]),
    }
    similar = (normalize(s_v) @ normalize(s_i).T / 0.05).log_softmax(1)
    same = labels["labels_v"].unsqueeze(1) == labels["labels_i"]
    count = same.sum(1)
    rows = -(similar * same).sum(1) / count.clamp(min=1) - count.clamp(min=1).log()
    wanted["nce"] = rows.mean()  # a row without positives counts as 0
    for name, value in wanted.items():
        assert_close(parts[name], value)
    assert_close(parts["loss"], plain["loss"] + 0.5 * wanted["id"] + 0.25 * wanted["tri"] + 2 * wanted["nce"])
    assert sorted(plain) == ["class", "instance", "kept", "loss"]
    alone = DAKDLoss(lam_tri=1)(*inputs, **labels)
    assert sorted(alone) == ["class", "instance", "kept", "loss", "tri"]
    empty = DAKDLoss(lam_id=1)(*batch(0, 0), **{k: v[:0] for k, v in (labels | logits).items()})
    assert empty["id"].item() == 0


def test_temperatures_by_step():
    inputs = batch()
    loss = DAKDLoss(temperature_fn=lambda step: [t + step for t in (1, 2, 3, 4, 5)])
    for step in (0, 1):
        fixed = DAKDLoss(temperatures=[t + step for t in (1, 2, 3, 4, 5)])
        assert_close(loss(*inputs, step=step)["loss"], fixed(*inputs)["loss"])
    with pytest.raises(ValueError, match=r"^step: expected a number for temperature_fn, got None$"):
        loss(*inputs)
    with pytest.raises(ValueError, match=r"^temperature_fn: expected 5 numbers, got 2$"):
        DAKDLoss(temperature_fn=lambda step: (2, 3))(*inputs, step=0)
    with pytest.raises(ValueError, match=r"^temperature_fn\[0\]: expected a number above 0, got 0$"):
        DAKDLoss(temperature_fn=lambda step: (0,) * 5)(*inputs, step=0)


@pytest.mark.parametrize(
    ("options", "name", "value", "error", "message"),
    [
        (
            {"mask_require_correct": True},
            "labels_v",
            None,
            ValueError,
            "expected a tensor for mask_require_correct, got None",
        ),
        ({"class_mode": "dkd"}, "labels_i", None, ValueError, "expected a tensor for class_mode, got None"),
        (
            {"instance_mode": "crd", "memory_dim": 48},
            "labels_v",
            None,
            ValueError,
            "expected a tensor for instance_mode, got None",
        ),
        ({"lam_tri": 1}, "labels_i", None, ValueError, "expected a tensor for lam_tri, got None"),
        ({"lam_nce": 1}, "labels_i", torch.zeros(3), TypeError, "expected an integer tensor, got torch.float32"),
        ({"lam_id": 1}, "logits_i", None, ValueError, "expected a tensor for lam_id, got None"),
        ({"lam_id": 1}, "logits_v", torch.zeros(3, 4), ValueError, r"expected 8 rows as in student_v, got \[3, 4\]"),
        ({"lam_id": 1}, "logits_v", torch.zeros(8), ValueError, r"expected shape \[N, D\], got \[8\]"),
    ],
)
def test_a_wrong_optional_tensor_is_named(options, name, value, error, message):
    inputs, tensors = labelled()
    tensors |= {"logits_v": torch.zeros(8, 4), "logits_i": torch.zeros(8, 4)}
    with pytest.raises(error, match=f"^{name}: {message}$"):
        DAKDLoss(**options)(*inputs, **(tensors | {name: value}))


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
        (
            {"levels": "class"},
            TypeError,
            "levels: expected a collection of instance, class, batch_gram, class_gram, got str",
        ),
        (
            {"levels": ()},
            ValueError,
            "levels: expected at least one of instance, class, batch_gram, class_gram, got none",
        ),
        ({"levels": ("logit",)}, ValueError, "levels: .* instance, class, batch_gram, class_gram, got 'logit'"),
        ({"standardize": "l2"}, ValueError, "standardize: expected one of zscore, none, got 'l2'"),
        ({"ddof": 2}, ValueError, "ddof: expected one of 0, 1, got 2"),
        ({"eps": -1}, ValueError, "eps: expected at least 0, got -1"),
        ({"class_protos": "all"}, ValueError, "class_protos: expected one of own, cross, both, got 'all'"),
        (
            {"mask_rule": "top"},
            ValueError,
            "mask_rule: expected one of percentile, fixed, ema, none, freematch, got 'top'",
        ),
        ({"mask_q": 101}, ValueError, r"mask_q: expected 0 to 100, got 101"),
        ({"mask_keep": "mid"}, ValueError, "mask_keep: expected one of high, low, got 'mid'"),
        ({"mask_conf": "both"}, ValueError, "mask_conf: expected one of class, own, got 'both'"),
        ({"mask_modalities": ("x",)}, ValueError, "mask_modalities: expected one of v, r, got 'x'"),
        ({"mask_norm": "sum"}, ValueError, "mask_norm: expected one of batch, kept, got 'sum'"),
        ({"mask_threshold": 2}, ValueError, r"mask_threshold: expected 0 to 1, got 2"),
        ({"mask_momentum": -1}, ValueError, r"mask_momentum: expected 0 to 1, got -1"),
        ({"mask_require_correct": 1}, TypeError, "mask_require_correct: expected True or False, got int"),
        ({"temperature_fn": 4}, TypeError, "temperature_fn: expected a function of the step, got int"),
        ({"instance_mode": "rkd"}, ValueError, "instance_mode: .* relation_kl, rkd_d, rkd_a, sp, ickd, crd, got 'rkd'"),
        ({"lam_batch_gram": -1}, ValueError, "lam_batch_gram: expected at least 0, got -1"),
        ({"contrast_temp": 0}, ValueError, "contrast_temp: expected a number above 0, got 0"),
        ({"contrast_negatives": "all"}, ValueError, "contrast_negatives: expected one of class, instance, got 'all'"),
        ({"memory_size": 0}, ValueError, "memory_size: expected an integer >= 1, got 0"),
        ({"memory_dim": 2.0}, TypeError, "memory_dim: expected an integer, got float"),
        ({"mask_rule": "freematch"}, TypeError, "num_classes: expected an integer, got NoneType"),
        (
            {"mask_rule": "freematch", "num_classes": 4, "mask_conf": "own"},
            ValueError,
            "mask_conf: expected 'class' for freematch, got 'own'",
        ),
        ({"class_mode": "ce"}, ValueError, "class_mode: expected one of kl, dkd, got 'ce'"),
        ({"relation_temp": 0}, ValueError, "relation_temp: expected a number above 0, got 0"),
        ({"lam_id": -1}, ValueError, "lam_id: expected at least 0, got -1"),
        ({"lam_tri": "1"}, TypeError, "lam_tri: expected a number, got str"),
        ({"lam_nce": -1}, ValueError, "lam_nce: expected at least 0, got -1"),
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
    with pytest.raises(ValueError, match=r"^prototypes_v: expected 4 rows as num_classes, got \[11, 48\]$"):
        DAKDLoss(mask_rule="freematch", num_classes=4)(*features, to_v, to_i)
    with pytest.raises(ValueError, match=r"^student_v: expected 2048 columns as memory_dim, got \[8, 48\]$"):
        DAKDLoss(instance_mode="crd", contrast_negatives="instance")(*features, to_v, to_i)
    with pytest.raises(ValueError, match=r"^prototypes_v: expected device cpu as student_v, got meta$"):
        DAKDLoss()(*features, to_v.to("meta"), to_i.to("meta"))
