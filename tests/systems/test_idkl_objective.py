from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast.functional import gem_pool
from vifast.losses import IDKLLoss
from vifast.nn import Purified
from vifast.systems.idkl import IDKLObjective

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "idkl_total.npz")
GRAPH = {"sysu120": "full", "else24": "light", "swap24": "light", "regdb60": "off"}
MAPS = {"raw": "xf", "masked": "xf_p", "normed": "xin", "normed_masked": "xin_p"}  # fields of Purified, golden names


def golden(name):
    value = torch.from_numpy(GOLDEN[name])
    return value.double() if value.is_floating_point() else value


def weights(prefix):
    """Golden arrays by the names of the objective's parameters."""
    names = {"neck_shared.weight": "bn_sh_gamma", "neck_specific.weight": "bn_sp_gamma"}
    heads = {"classifier_shared": "cls_sh", "classifier_specific": "cls_sp", "classifier_entropy": "cls_ent"}
    names |= {f"{ours}.weight": theirs for ours, theirs in heads.items()}
    for ours, theirs in (("modality_shared", "disc_sh"), ("modality_specific", "disc_sp")):
        for layer, part in ((0, "fc1"), (1, "bn1"), (4, "fc2"), (5, "bn2"), (8, "fc3")):
            names |= {f"{ours}.{layer}.{kind}": f"{theirs}_{part}_{kind}" for kind in ("weight", "bias")}
    return {ours: golden(prefix + theirs) for ours, theirs in names.items()}


def objective(case):
    result = IDKLObjective(num_classes=14, channels=16, graph=GRAPH[case], dropout=0.0).double()
    missing, unexpected = result.load_state_dict(weights("w__"), strict=False)
    assert unexpected == []
    assert all(
        "running" in name or "batches" in name or name.endswith("neck_shared.bias") or "neck" in name
        for name in missing
    )
    return result


def inputs(case):
    """(leaves by golden name, arguments of the objective)."""
    leaves = {name: golden(f"{case}__in_{name}").requires_grad_() for name in ("sh", "sp", *MAPS.values())}
    pooled = {field: gem_pool(leaves[name]) for field, name in MAPS.items()}
    modality = torch.isin(golden(f"{case}__cams"), torch.tensor([3, 6])).long()
    return leaves, (leaves["sh"], Purified(fused=leaves["sp"], **pooled), golden(f"{case}__labels"), modality)


@pytest.mark.parametrize("case", GRAPH)
def test_golden_values_and_gradients(case):
    model, (leaves, arguments) = objective(case), inputs(case)
    parts = model(*arguments)
    parts["loss"].backward()

    def close(value, name):
        assert_close(value, golden(f"{case}__{name}"), rtol=1e-9, atol=1e-11)

    close(parts["loss"].detach(), "loss")
    close(parts["ce_shared"].detach(), "term_ce")
    close(parts["ce_specific"].detach(), "term_id_pl")
    close((parts["triplet_shared"] + parts["triplet_specific"]).detach(), "term_tri")
    close(parts["modality"].detach(), "term_unad")
    close(parts["confusion"].detach(), "term_pse")
    assert_close(
        parts["purifier"].detach(), golden(f"{case}__term_IN_p") + golden(f"{case}__term_F_p"), rtol=1e-9, atol=1e-11
    )
    for name, leaf in leaves.items():
        close(leaf.grad, f"grad_{name}")
    if f"{case}__gradw_cls_sh" in GOLDEN:
        expected = weights(f"{case}__gradw_")
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", GRAPH)
def test_total_is_the_weighted_sum_of_the_parts(case):
    parts = objective(case)(*inputs(case)[1])
    tgsa, csa = {"full": (0.6, 0.8), "light": (0.1, 0.3), "off": (0.0, 0.3)}[GRAPH[case]]
    unit = ("ce_shared", "ce_specific", "triplet_shared", "triplet_specific", "modality", "confusion", "mdr")
    total = sum(parts[name] for name in unit) + 0.1 * parts["purifier"] + tgsa * parts["tgsa"] + csa * parts["csa"]
    assert_close(total, parts["loss"])
    assert set(parts) == {*unit, "loss", "purifier", "tgsa", "csa"}


def test_float32_follows_float64():
    torch.manual_seed(0)
    exact = IDKLObjective(num_classes=5, channels=24, graph="full", dropout=0.0).double()
    single = IDKLObjective(num_classes=5, channels=24, graph="full", dropout=0.0)
    single.load_state_dict(exact.state_dict())
    labels, modality = torch.arange(24) // 6, torch.arange(24) % 2
    shared, purified = torch.rand(24, 24), torch.rand(5, 24, 24)
    grads = []
    for model, dtype in ((exact, torch.float64), (single, torch.float32)):
        leaf = shared.to(dtype).requires_grad_()
        loss = model(leaf, Purified(*purified.to(dtype)), labels, modality)["loss"]
        loss.backward()
        assert loss.dtype == dtype
        grads.append((loss.detach().double(), leaf.grad.double()))
    for ours, wanted in zip(grads[1], grads[0], strict=True):
        assert_close(ours, wanted, rtol=1e-4, atol=1e-6)


def test_a_known_number_of_images_gives_the_same_loss():
    feat, logits = torch.randn(12, 8), torch.randn(12, 4)
    labels, modality = torch.arange(12) // 6, torch.arange(12) % 2
    counted = IDKLLoss()(feat, feat + 1, logits, logits.flip(1), labels, modality)
    told = IDKLLoss(num_instances=6)(feat, feat + 1, logits, logits.flip(1), labels, modality)
    assert all(torch.equal(counted[name], told[name]) for name in counted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": torch.zeros(8, dtype=torch.int64)}, "modality: expected as many visible rows"),
        ({"modality": torch.zeros(7, dtype=torch.int64)}, r"modality: expected shape \[8\]"),
        ({"labels": torch.arange(8)}, "labels: expected equally many images"),
        ({"specific": torch.zeros(7, 6)}, "specific: expected 8 rows as in shared, got 7"),
        ({"logits_shared": torch.zeros(8)}, r"logits_shared: expected shape \[N, D\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    feat, logits = torch.randn(8, 6), torch.randn(8, 3)
    arguments = {
        "shared": feat,
        "specific": feat,
        "logits_shared": logits,
        "logits_specific": logits,
        "labels": torch.arange(8) // 4,
        "modality": torch.arange(8) % 2,
    }
    with pytest.raises(ValueError, match=message):
        IDKLLoss()(**(arguments | change))


def test_full_graphs_need_an_even_half():
    feat, logits, labels = torch.randn(6, 4), torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match="modality: expected a multiple of 4 rows"):
        IDKLLoss()(feat, feat, logits, logits, labels, torch.arange(6) % 2)
    assert IDKLLoss(graph="light")(feat, feat, logits, logits, labels, torch.arange(6) % 2)["loss"].isfinite()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"margin": -1.0}, "margin: expected at least 0"),
        ({"graph": "half"}, "graph: expected one of full, light, off"),
        ({"num_instances": 1}, "num_instances: expected at least 2"),
        ({"distill": "both"}, "distill: expected one of symmetric, to_shared"),
        ({"terms": ("ce_shared",)}, "terms: expected one of triplet_shared"),
    ],
)
def test_bad_settings_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        IDKLLoss(**keywords)


def test_distillation_to_shared_is_one_divergence_from_the_specific_branch():
    torch.manual_seed(0)
    f, g, z, y = (torch.randn(8, n, dtype=torch.float64, requires_grad=True) for n in (6, 6, 3, 3))
    labels, modality = torch.arange(8) // 4, torch.arange(8) % 2
    parts = IDKLLoss(graph="light", distill="to_shared")(f, g, z, y, labels, modality)

    def one_way(a, b):  # KL(softmax(b) || softmax(a)), over the rows
        return (b.softmax(1) * (b.log_softmax(1) - a.log_softmax(1))).sum() / len(a)

    def blocks(x, k):
        return torch.cat(x.split(k), 1)

    def graph(x):
        off = ~torch.eye(len(x), dtype=torch.bool)
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")[off].view(len(x), -1)

    csa = tgsa = 0
    for m in (0, 1):
        rows = modality == m
        csa = csa + one_way(z[rows], y[rows]) + one_way(blocks(z[rows], 2), blocks(y[rows], 2))
        tgsa = tgsa + one_way(graph(f[rows]), graph(g[rows]))
    assert_close(parts["csa"], csa)
    assert_close(parts["tgsa"], tgsa)
    grads = torch.autograd.grad(parts["csa"] + parts["tgsa"], (f, g, z, y), allow_unused=True)
    assert [grad is None for grad in grads] == [False, True, False, True]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"terms": ("ce",)}, "terms: expected one of ce_shared"), ({"terms": ()}, "terms: expected at least one")],
)
def test_bad_terms_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        IDKLObjective(num_classes=3, channels=4, **keywords)
