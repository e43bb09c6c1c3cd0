import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from vifast import functional as F
from vifast.losses import CenterTripletLoss, CKDALoss, GraphAlignmentLoss, PrototypeAlignmentLoss


def waves(rows, cols, row_step, col_step, phase):
    i, j = torch.arange(rows, dtype=torch.float64), torch.arange(cols, dtype=torch.float64)
    return torch.sin(row_step * i.unsqueeze(1) + col_step * j + phase)


# Spec ckda 14, vector 1.
LABELS = torch.tensor([0, 0, 1, 1])
STUDENT = {"feat_v": waves(4, 6, 0.7, 0.3, 0.1), "feat_i": waves(4, 6, 0.5, 0.9, 0.2)}
LOGITS = {"logits_v": waves(4, 2, 0.3, 0.8, 0.0), "logits_i": waves(4, 2, 0.4, 0.1, 0.0)}
OLD = {
    "teacher_v": waves(4, 6, 0.7, 0.3, 0.4),
    "teacher_i": waves(4, 6, 0.5, 0.9, 0.6),
    "prototypes_v": waves(5, 6, 1.1, 0.4, 0.0),
    "prototypes_i": waves(5, 6, 1.3, 0.8, 0.5),
}
BATCH = STUDENT | LOGITS | {"labels": LABELS}
PARTS = {"loss", "base", "ce", "triplet", "center", "prompt", "intra", "inter"}


@pytest.mark.parametrize(
    ("preset", "intra", "inter", "total"),
    [
        ("release", 4.850815220e-4, 2.957926960e-4, 3.904371090e-4),
        ("clean", 1.234370754, 0.4026200310, 0.8184953923),
    ],
)
def test_spec_vector(preset, intra, inter, total):
    losses = CKDALoss(preset=preset)(**BATCH, **OLD)
    assert set(losses) == PARTS
    assert_close(losses["intra"].item(), intra, rtol=1e-9, atol=0)
    assert_close(losses["inter"].item(), inter, rtol=1e-9, atol=0)
    assert_close((losses["loss"] - losses["base"]).item(), total, rtol=1e-9, atol=0)


def test_base_is_its_terms():
    """Spec ckda 14, vector 3, and the sum of two cross-entropies."""
    r, q = torch.arange(8, dtype=torch.float64).unsqueeze(1), torch.arange(4, dtype=torch.float64)
    feat_v, feat_i, labels = torch.sin(0.5 * r + 0.3 * q), torch.cos(0.4 * r + 0.2 * q), torch.arange(8) // 2
    logits_v, logits_i = feat_v + 1, feat_i - feat_v
    losses = CKDALoss(omega=0.7, nu=0.25)(feat_v, feat_i, logits_v, logits_i, labels.to(torch.int32))
    assert_close(losses["triplet"].item(), 1.28326944, rtol=0, atol=5e-9)
    assert_close(losses["center"].item(), 0.75 * 0.91410077 + 0.25 * 1.01381286, rtol=0, atol=1e-8)
    assert_close(losses["ce"], cross_entropy(logits_v, labels) + cross_entropy(logits_i, labels))
    assert_close(losses["base"], losses["ce"] + losses["triplet"] + 0.7 * losses["center"])
    assert losses["loss"] == losses["base"]
    assert [losses[name].item() for name in ("prompt", "intra", "inter")] == [0, 0, 0]


def test_weights_apply_to_the_total_alone():
    prompts, old_prompts = torch.randn(4, 3, 8, 4), torch.randn(4, 3, 8, 4)
    given = BATCH | OLD | {"prompts": prompts, "teacher_prompts": old_prompts}
    one, other = CKDALoss()(**given), CKDALoss(alpha=0.5, beta=3, mu=0.2)(**given)
    for name in PARTS - {"loss"}:
        assert torch.equal(one[name], other[name])
    assert_close(one["prompt"], (prompts - old_prompts).abs().mean().double(), rtol=1e-6, atol=0)
    total = other["base"] + 0.5 * other["prompt"] + 3 * (0.2 * other["inter"] + 0.8 * other["intra"])
    assert_close(other["loss"], total)


def test_the_first_stage_has_nothing_to_hold_its_prompts_to():
    losses = CKDALoss()(**BATCH, prompts=torch.randn(4, 3, 8, 4))
    assert losses["prompt"] == 0
    assert losses["loss"] == losses["base"]


def test_alignment_features_and_kappa():
    plain, aligned = CKDALoss()(**BATCH, **OLD), CKDALoss()(**BATCH, **OLD, align_v=OLD["teacher_v"])
    assert plain["base"] == aligned["base"]
    wanted = 0.5 * F.prototype_alignment(STUDENT["feat_i"], OLD["teacher_i"], OLD["prototypes_i"])
    assert_close(aligned["intra"], wanted)
    assert CKDALoss(preset="release", kappa=10.0)(**BATCH, **OLD)["intra"] == plain["intra"]
    assert (CKDALoss().kappa, CKDALoss(preset="release").kappa) == (10.0, 0.1)


def test_a_student_equal_to_its_teacher_pays_nothing():
    prompts = torch.randn(4, 3, 8, 4)
    same = {"align_v": OLD["teacher_v"], "align_i": OLD["teacher_i"], "prompts": prompts, "teacher_prompts": prompts}
    losses = CKDALoss()(**BATCH, **OLD, **same)
    for name in ("prompt", "intra", "inter"):
        assert_close(losses[name].item(), 0.0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kappa", [0.1, 0.5])
def test_kappa_bounds_the_alignment(kappa):
    losses = CKDALoss(kappa=kappa)(**BATCH, **OLD)
    assert max(losses["intra"], losses["inter"]) <= (2 * kappa) ** 2 / 8


def test_the_order_of_identities_does_not_matter():
    order = torch.tensor([2, 3, 0, 1])
    one = CKDALoss()(**BATCH, **OLD)
    rows = {name: x[order] for name, x in (BATCH | OLD).items() if "prototypes" not in name}
    rows["labels"] = LABELS
    moved = {name: x.flip(1) for name, x in LOGITS.items()}  # the classes swap with the identities
    rows |= {name: x[order] for name, x in moved.items()}
    other = CKDALoss()(**(BATCH | OLD | rows))
    for name in PARTS:
        assert_close(one[name], other[name])


@pytest.mark.parametrize("terms", [("ce", "triplet"), ("center", "prompt"), ("ce", "intra"), ("inter",)])
def test_left_out_terms_are_zero_and_the_rest_is_what_it_was(terms):
    prompts = {"prompts": torch.randn(4, 3, 8, 4), "teacher_prompts": torch.randn(4, 3, 8, 4)}
    whole, part = (CKDALoss(**given)(**BATCH, **OLD, **prompts) for given in ({}, {"terms": terms}))
    for name in PARTS - {"loss", "base"}:
        assert part[name] == (whole[name] if name in terms else 0)
    weights = {"ce": 1, "triplet": 1, "center": 1, "prompt": 1, "intra": 0.5, "inter": 0.5}
    assert_close(part["loss"], sum(weights[name] * whole[name] for name in terms))


def test_gradients_reach_the_student_alone():
    given = {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in (BATCH | OLD).items()}
    given |= {name: torch.randn(4, 3, 8, 4, requires_grad=True) for name in ("prompts", "teacher_prompts")}
    CKDALoss()(**given)["loss"].backward()
    reached = {name for name, x in given.items() if x.grad is not None}
    assert reached == {*STUDENT, *LOGITS, "prompts"}
    assert_close(given["prompts"].grad.abs(), torch.full((4, 3, 8, 4), 1 / 384))


def test_gradcheck():
    args = [x.clone().requires_grad_() for x in (*STUDENT.values(), *LOGITS.values())]
    assert torch.autograd.gradcheck(lambda *rows: CKDALoss()(*rows, LABELS, **OLD)["loss"], args)


def test_half_types_and_one_graph():
    given = {name: x.bfloat16() if x.is_floating_point() else x for name, x in (BATCH | OLD).items()}
    losses = CKDALoss()(**given)
    wide = CKDALoss()(**{name: x.double() if x.is_floating_point() else x for name, x in given.items()})
    for name in PARTS:
        assert losses[name].dtype == torch.float32
        assert_close(losses[name].double(), wide[name], rtol=1e-5, atol=1e-6)
    compiled = torch.compile(CKDALoss(), backend="aot_eager", fullgraph=True)
    assert_close(compiled(**given), losses)


def test_no_rows():
    empty = {name: x[:0].float() for name, x in (STUDENT | LOGITS).items()} | {"labels": LABELS[:0]}
    losses = CKDALoss()(**empty)
    assert all(loss == 0 for loss in losses.values())


def test_one_op_per_alignment_problem():
    names = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    rows = [x.float() for x in (STUDENT["feat_v"], OLD["teacher_v"], OLD["prototypes_v"])]
    with Count():
        F.prototype_alignment(rows[0].requires_grad_(), *rows[1:])
    assert [name for name in names if "vifast" in name] == ["vifast.prototype_alignment.default"]
    assert len(names) <= 6


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "paper"}, ValueError, "preset: expected one of release, clean, got 'paper'"),
        ({"alpha": -1}, ValueError, "alpha: expected at least 0, got -1"),
        ({"beta": "1"}, TypeError, "beta: expected a number, got str"),
        ({"mu": 2}, ValueError, "mu: expected 0 to 1, got 2"),
        ({"tau": 0}, ValueError, "tau: expected a number above 0, got 0"),
        ({"kappa": -1}, ValueError, "kappa: expected at least 0, got -1"),
        ({"margin": -1}, ValueError, "margin: expected at least 0, got -1"),
        ({"omega": -1}, ValueError, "omega: expected at least 0, got -1"),
        ({"nu": -1}, ValueError, "nu: expected 0 to 1, got -1"),
    ],
)
def test_a_wrong_option_is_named(options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        CKDALoss(**options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"feat_v": [1.0]}, TypeError, r"feat_v: expected a tensor \[N, D\], got list"),
        ({"logits_i": torch.ones(3, 2)}, ValueError, r"logits_i: expected 4 rows as in feat_v, got \[3, 2\]"),
        ({"logits_v": LABELS}, TypeError, "logits_v: expected a floating-point tensor, got torch.int64"),
        ({"labels": LABELS[:3]}, ValueError, r"labels: expected shape \[4\], one per row of feat_v, got \[3\]"),
        (
            {"teacher_v": None},
            ValueError,
            "teacher_v: expected a tensor beside teacher_i, prototypes_v, prototypes_i, got None",
        ),
        ({"prototypes_i": OLD["prototypes_i"][:, :3]}, ValueError, "prototypes: expected 6 columns as in student, .*"),
        (
            dict.fromkeys(OLD) | {"align_v": STUDENT["feat_v"]},
            ValueError,
            "teacher_v: expected a tensor beside align_v and align_i, got None",
        ),
        (
            {"teacher_prompts": torch.ones(2, 3)},
            ValueError,
            r"prompts: expected shape \[2, 3\] as teacher_prompts, got None",
        ),
        (
            {"prompts": torch.ones(2, 3)},
            ValueError,
            "teacher_prompts: expected a tensor beside prompts and a teacher, got None",
        ),
        (
            {"prompts": torch.ones(3), "teacher_prompts": torch.ones(2, 3)},
            ValueError,
            r"prompts: expected shape \[2, 3\] as teacher_prompts, got \[3\]",
        ),
    ],
)
def test_a_wrong_argument_is_named(change, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        CKDALoss()(**(BATCH | OLD | change))


def test_modules_are_their_functions():
    a, b, labels = STUDENT["feat_v"], STUDENT["feat_i"], LABELS
    for options in ({}, {"symmetric": False, "floor": 0.5}, {"reduction": "none"}):
        assert torch.equal(GraphAlignmentLoss(**options)(a, b), F.graph_alignment(a, b, **options))
    for options in ({}, {"margin": 1.0, "sample_weight": 0.2}, {"symmetric": True}):
        wanted = F.center_triplet_loss(a, b, labels, **options)
        assert torch.equal(CenterTripletLoss(**options)(a, b, labels), wanted)
    for options in ({}, {"tau": 0.5, "kappa": 1.0}):
        wanted = F.prototype_alignment(a, b, OLD["prototypes_v"], **options)
        assert torch.equal(PrototypeAlignmentLoss(**options)(a, b, OLD["prototypes_v"]), wanted)
    assert repr(GraphAlignmentLoss()) == "GraphAlignmentLoss(symmetric=True, floor=1e-06, reduction='mean')"
    assert repr(CenterTripletLoss()) == "CenterTripletLoss(margin=0.1, sample_weight=0.5, symmetric=False)"
    assert repr(PrototypeAlignmentLoss()) == "PrototypeAlignmentLoss(tau=0.1, kappa=10.0)"
    assert repr(CKDALoss()) == "CKDALoss(preset='clean', alpha=1, beta=1, mu=0.5, kappa=10.0)"


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (GraphAlignmentLoss, {"floor": -1}, ValueError, "floor: expected at least 0, got -1"),
        (GraphAlignmentLoss, {"reduction": "max"}, ValueError, "reduction: expected one of .*, got 'max'"),
        (GraphAlignmentLoss, {"precision": "low"}, ValueError, "precision: expected one of .*, got 'low'"),
        (CenterTripletLoss, {"margin": -1}, ValueError, "margin: expected at least 0, got -1"),
        (CenterTripletLoss, {"sample_weight": 2}, ValueError, "sample_weight: expected 0 to 1, got 2"),
        (CenterTripletLoss, {"precision": "low"}, ValueError, "precision: expected one of .*, got 'low'"),
        (PrototypeAlignmentLoss, {"tau": 0}, ValueError, "tau: expected a number above 0, got 0"),
        (PrototypeAlignmentLoss, {"kappa": -1}, ValueError, "kappa: expected at least 0, got -1"),
    ],
)
def test_a_wrong_module_option_is_named(module, options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        module(**options)
