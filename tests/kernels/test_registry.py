import pytest
import torch

import vifast
from vifast import functional as F
from vifast.kernels._registry import Op, check, forced
from vifast.testing import features, to_float64

FEAT, LABELS = features(9, 5)
MINED = (torch.rand(9) + 1, torch.rand(9) + 1, torch.arange(9).flip(0), torch.arange(9).roll(1))
ARGS = {
    "batch_hard": (FEAT, LABELS, None, None, "euclidean", 0.3, "exact", "mean"),
    "batch_hard_backward": (torch.ones(()), None, None, FEAT, None, *MINED, "euclidean", 0.3, "mean"),
    "pairwise_distance": (FEAT, None, 1e-12, True, "exact"),
    "pairwise_distance_backward": (torch.ones(9, 9), torch.rand(9, 9) + 1, FEAT, None, 1e-12, True),
    "weighted_triplet": (FEAT, LABELS, False, "exact", "mean"),
    "neighbor_loss": (FEAT, LABELS, None, None, "euclidean", 1.0, "exact", "mean"),
}


def tensors(result):
    return result if isinstance(result, tuple) else (result,)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.fixture(params=[op for op in Op.registered if op.name in ARGS], ids=lambda op: op.name)
def op(request):
    return request.param


def test_use_reference_switches_every_op(op):
    args = ARGS[op.name]
    with vifast.use_reference():
        assert equal(op(*args), op.definition(*args))


def test_float64_is_the_definition(op):
    args = to_float64(ARGS[op.name])
    assert equal(op(*args), op.definition(*args))


def test_use_reference_reaches_the_backward(monkeypatch):
    calls = []
    for name in ("batch_hard", "batch_hard_backward"):
        op = next(op for op in Op.registered if op.name == name)
        definition = op.definition
        monkeypatch.setattr(op, "definition", lambda *a, f=definition, n=name: calls.append(n) or f(*a))
    feat = FEAT.clone().requires_grad_()
    F.triplet_loss(feat, LABELS).backward()
    assert calls == []
    with vifast.use_reference():
        F.triplet_loss(feat, LABELS).backward()
    assert calls == ["batch_hard", "batch_hard_backward"]


def test_the_context_nests_and_ends_with_an_exception(monkeypatch):
    op = next(op for op in Op.registered if op.name == "pairwise_distance")
    monkeypatch.setattr(op, "definition", lambda *args: torch.zeros(1))
    args = ARGS["pairwise_distance"]

    def switched():
        return op(*args).shape == (1,)

    assert not switched()
    with vifast.use_reference():
        with vifast.use_reference():
            assert switched()
        assert switched()
    assert not switched()
    with pytest.raises(RuntimeError), vifast.use_reference():
        raise RuntimeError
    assert not switched()


def test_a_device_without_a_kernel_falls_back_to_the_definition():
    op = next(op for op in Op.registered if op.name == "pairwise_distance")
    args = ARGS["pairwise_distance"]
    with forced("no such device"):
        assert equal(op(*args), op.definition(*args))


@pytest.mark.parametrize("name", ARGS)
def test_fake_tensors_have_the_shapes_of_real_ones(name):
    op = next(op for op in Op.registered if op.name == name)
    real = tensors(op(*ARGS[name]))
    meta = tensors(op(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in ARGS[name])))
    for one, other in zip(real[:2], meta[:2], strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("batch_hard", (FEAT[0], *ARGS["batch_hard"][1:]), r"batch_hard: expected \[N, D\] and \[M, D\], got \[5\]"),
        ("batch_hard", (FEAT, LABELS[1:], *ARGS["batch_hard"][2:]), "batch_hard: one label per row"),
        ("pairwise_distance", (FEAT, FEAT[:, 1:], 0.0, True, "exact"), r"got \[9, 5\] and \[9, 4\]"),
        (
            "weighted_triplet",
            (FEAT, LABELS[1:], False, "exact", "mean"),
            r"expected \[N, D\] and \[N\], got \[9, 5\] and \[8\]",
        ),
    ],
)
def test_fakes_refuse_shapes_that_do_not_fit(name, args, message):
    op = next(op for op in Op.registered if op.name == name)
    with pytest.raises(ValueError, match=message):
        op(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args))


def test_check_builds_its_message_only_when_it_fails():
    check(True, lambda: pytest.fail("built"))
    with pytest.raises(ValueError, match="why"):
        check(False, lambda: "why")
