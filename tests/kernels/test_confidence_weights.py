"""confidence_weights: tables done by hand, every rule against the definition in float64, rows that do not count."""

import pytest
import torch
from torch.testing import assert_close

from vifast.kernels import _C
from vifast.kernels.confidence_weights import RULES, confidence_weights
from vifast.testing import assert_close_to_oracle, check_op, to_float64

SURE = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
FIXED = [1.0, 3.0, 5.0, 7.0]


def logits_of(confidence):
    """Two logits a row whose softmax has that larger probability, 0.5 .. 1."""
    confidence = torch.as_tensor(confidence, dtype=torch.float64)
    return torch.stack((confidence.logit(1e-12), torch.zeros_like(confidence)), 1).float()


@pytest.mark.parametrize(
    ("masked", "rowwise", "by_kept", "wanted", "kept"),
    [
        ([0.0] * 4, True, False, [[1 / 2, 3 / 2]] * 2 + [[5 / 4, 7 / 4]] * 4, 1.0),
        ([0, 0, 1, 0], True, False, [[1 / 2, 3 / 2]] * 2 + [[(5 + k) / 4, 7 / 4] for k in (1, 0, 0, 1)], 0.5),
        ([0, 0, 1, 2], True, True, [[1 / 2, 3 / 2]] * 2 + [[5 / 4 + k, 7 / 4 + 2 * k] for k in (0.5, 0, 0, 0.5)], 0.5),
        ([4, 0, 1, 0], False, False, [[3 / 2, 3 / 2]] * 2 + [[5.5 / 4, 7 / 4]] * 4, 0.5),
    ],
)
def test_weights_done_by_hand(backend, masked, rowwise, by_kept, wanted, kept):
    logits, masked = logits_of(0.6 + 0.3 * SURE).to(backend.device), [float(x) for x in masked]
    weights, share, _ = confidence_weights(logits, None, None, 2, "fixed", 0.8, True, FIXED, masked, rowwise, by_kept)
    assert_close(weights.cpu(), torch.tensor(wanted))
    assert share.item() == kept


@pytest.mark.parametrize(
    ("rule", "level", "high", "allowed", "wanted"),
    [
        ("percentile", 50.0, True, None, [1, 0, 1, 0, 1]),
        ("percentile", 50.0, False, None, [1, 1, 0, 1, 0]),
        ("percentile", 50.0, True, [0, 0, 1, 1, 0], [1, 0, 1, 0, 0]),
        ("fixed", 0.8, True, None, [1, 0, 1, 0, 0]),
        ("fixed", 0.8, False, None, [1, 1, 0, 1, 1]),
        ("none", 0.0, True, [0, 0, 1, 1, 0], [1, 0, 1, 1, 0]),
    ],
)
def test_masks_done_by_hand(backend, rule, level, high, allowed, wanted):
    logits = logits_of([0.9, 0.6, 0.9, 0.7, 0.75]).to(backend.device)
    allowed = None if allowed is None else torch.tensor(allowed, dtype=torch.float32, device=backend.device)
    tables = [1.0, 0.0], [0.0, 1.0]
    weights, share, _ = confidence_weights(logits, allowed, None, 1, rule, level, high, *tables, True, False)
    assert_close(weights.cpu().flatten() * torch.tensor([1.0, 4, 4, 4, 4]), torch.tensor(wanted, dtype=torch.float32))
    assert share.item() == sum(wanted[1:]) / 4


@pytest.mark.parametrize(
    ("confidence", "before", "level", "after", "kept"),
    [
        ([0.9, 0.6, 0.8], torch.nan, 0.9, 0.7, 0.5),
        ([0.9, 0.6, 0.8], 0.5, 0.75, 0.55, 1.0),
        ([0.9, 0.6, 0.8], 0.9, 1.0, 0.9, 0.0),
        ([0.9, torch.nan, 0.8], 0.5, 0.75, 0.5, 0.5),
        ([0.9], 0.5, 0.75, 0.5, 1.0),
    ],
)
def test_a_running_threshold(backend, confidence, before, level, after, kept):
    before = torch.tensor(before, device=backend.device)
    logits = logits_of(confidence).to(backend.device)
    tables = [1.0, 0.0], [0.0, 1.0]
    _, share, theta = confidence_weights(logits, None, before, 1, "ema", level, True, *tables, True, False)
    assert theta.item() == pytest.approx(after, rel=1e-6)
    assert share.item() == kept


def arguments(n, rule, seed=0, c=37, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, c, generator=generator)
    allowed = (torch.rand(n, generator=generator) < 0.8).float() if seed % 2 else None
    before = torch.tensor(0.3, device=device) if rule == "ema" else None
    level = {"none": 0.0, "percentile": 37.5, "fixed": 0.25, "ema": 0.9}[rule]
    masked = [[0.0, 0.0, 0.0, 1.0, 0.5, 2.0], [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]][seed % 2]
    table = [1.0, 2.0, 0.0, 0.0, 1.0, 0.0], masked
    allowed = None if allowed is None else allowed.to(device)
    return logits.to(device), allowed, before, n // 3, rule, level, seed % 3 != 0, *table, seed < 2, seed == 3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [0, 1, 2, 33, 130, 1030])
def test_against_float64(backend, rule, n):
    if backend.name == "triton" and n > 130:
        pytest.skip("slow in the interpreter")
    for seed in range(4):
        args = arguments(n, rule, seed, device=backend.device)
        oracle = confidence_weights(*to_float64(args[:2]), *args[2:])
        for ours, theirs in zip(confidence_weights(*args), oracle, strict=True):
            assert_close_to_oracle(ours, theirs.to(ours), length=max(n, 37))


def test_a_nan_is_never_sure(backend):
    logits = logits_of([0.9, 0.6, torch.nan, 0.8]).to(backend.device)
    for rule, level in (("percentile", 50.0), ("fixed", 0.7)):
        for high in (True, False):
            args = (logits, None, None, 0, rule, level, high, [0.0] * 2, [1.0] * 2, True, False)
            weights, share, _ = confidence_weights(*args)
            assert weights[2].item() == 0
            assert 0 < share.item() < 1


def test_op():
    for rule in RULES:
        check_op(confidence_weights, lambda n, rule=rule: arguments(n, rule, 1), length=1, outputs=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(3)}, r"confidence_weights: expected logits \[N, C\], got \[3\]"),
        ({7: [1.0]}, "confidence_weights: expected two tables of one even length, got 1 and 6 numbers"),
        (
            {7: [1.0] * 3, 8: [1.0] * 3},
            "confidence_weights: expected two tables of one even length, got 3 and 3 numbers",
        ),
        ({4: "ema"}, r"confidence_weights: expected one of \(.*\) and before exactly with ema, got 'ema'"),
        ({4: "top"}, r"confidence_weights: expected one of \(.*\) and before exactly with ema, got 'top'"),
    ],
)
def test_a_wrong_call_is_refused(change, message):
    args = list(arguments(6, "fixed"))
    for place, value in change.items():
        args[place] = value
    with pytest.raises(ValueError, match=f"^{message}$"):
        confidence_weights(*args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: 5}, "first: expected a number of rows"),
        ({4: 4}, "rule: expected 0 to 3"),
        ({7: [1.0]}, "fixed, masked: expected one even length"),
    ],
)
def test_the_binding_refuses_what_does_not_fit(change, message):
    out = torch.empty(4, 1), torch.empty(()), torch.empty(())
    args = [torch.rand(4), None, None, 2, 0, 50.0, True, [1.0] * 2, [1.0] * 2, True, False, *out]
    _C.confidence_weights(*args)
    for place, value in change.items():
        args[place] = value
    with pytest.raises(ValueError, match=f"^{message}$"):
        _C.confidence_weights(*args)
