"""The public functions as a caller meets them: defaults, reductions, and a message for every wrong argument."""

import pytest
import torch
from torch.testing import assert_close

import vifast
from vifast import functional as F

FEAT = torch.randn(6, 4)
LABELS = torch.arange(6) // 2


def test_reductions_of_both_losses():
    for loss in (F.triplet_loss, F.weighted_triplet_loss):
        rows = loss(FEAT, LABELS, reduction="none")
        assert rows.shape == (6,)
        assert_close(loss(FEAT, LABELS), rows.mean())
        assert_close(loss(FEAT, LABELS, reduction="sum"), rows.sum())
        assert loss(FEAT[:0], LABELS[:0]) == 0


def test_an_integer_margin_is_a_number():
    assert_close(F.triplet_loss(FEAT, LABELS, margin=1), F.triplet_loss(FEAT, LABELS, margin=1.0))


def test_fast_precision_is_exact_on_the_cpu():
    for function in (F.triplet_loss, F.weighted_triplet_loss):
        assert torch.equal(function(FEAT, LABELS, precision="fast"), function(FEAT, LABELS))
    assert torch.equal(F.pairwise_distance(FEAT, precision="fast"), F.pairwise_distance(FEAT))


def test_metrics_agree_with_each_other():
    unit = torch.nn.functional.normalize(FEAT)
    assert_close(F.pairwise_distance(FEAT, metric="cosine"), 1 - unit @ unit.T, rtol=1e-5, atol=1e-6)
    off = ~torch.eye(6, dtype=torch.bool)
    squared = F.pairwise_distance(FEAT, metric="sqeuclidean")
    assert_close(F.pairwise_distance(FEAT)[off].square(), squared[off])


def test_scaling_rows_does_not_move_cosine_or_normalized():
    scaled = FEAT * torch.rand(6, 1).add(0.5)
    assert_close(F.hard_pairs(FEAT, LABELS, metric="cosine"), F.hard_pairs(scaled, LABELS, metric="cosine"))
    one, other = (F.weighted_triplet_loss(x, LABELS, normalize=True) for x in (FEAT, scaled))
    assert_close(one, other)


def test_check_finite():
    F.check_finite(feat=FEAT, scalar=torch.tensor(1.0), empty=FEAT[:0], labels=LABELS)
    bad = FEAT.clone()
    bad[4, 1], bad[5, 0] = torch.inf, torch.nan
    with pytest.raises(ValueError, match=r"^feat: row 4 is not finite$"):
        F.check_finite(other=FEAT, feat=bad)
    with pytest.raises(ValueError, match=r"^scalar: row 0 is not finite$"):
        F.check_finite(scalar=torch.tensor(torch.nan))
    with pytest.raises(TypeError, match=r"^feat: expected a tensor, got list$"):
        F.check_finite(feat=[1.0])


def test_unknown_submodule():
    with pytest.raises(AttributeError, match="module 'vifast' has no attribute 'nothing'"):
        vifast.nothing  # noqa: B018


ROWS = [
    (FEAT.tolist(), TypeError, r"expected a tensor \[N, D\], got list"),
    (FEAT.long(), TypeError, "expected a floating-point tensor, got torch.int64"),
    (FEAT[0], ValueError, r"expected shape \[N, D\], got \[4\]"),
    (FEAT.unsqueeze(0), ValueError, r"expected shape \[N, D\], got \[1, 6, 4\]"),
]
OTHER = [
    *ROWS,
    (FEAT[:, :3], ValueError, r"expected 4 columns as in feat, got \[6, 3\]"),
    (FEAT.double(), TypeError, "expected torch.float32 as feat, got torch.float64"),
    (FEAT.to("meta"), ValueError, "expected device cpu as feat, got meta"),
]
LABEL_ERRORS = [
    (LABELS.tolist(), TypeError, r"expected an integer tensor \[N\], got list"),
    (LABELS.float(), TypeError, "expected an integer tensor, got torch.float32"),
    (LABELS > 0, TypeError, "expected an integer tensor, got torch.bool"),
    (LABELS[:5], ValueError, r"expected shape \[6\], one per row of {}, got \[5\]"),
    (LABELS.view(3, 2), ValueError, r"expected shape \[6\], one per row of {}, got \[3, 2\]"),
    (LABELS.to("meta"), ValueError, "expected device cpu as {}, got meta"),
]
NUMBERS = [
    ("0.3", TypeError, "expected a number, got str"),
    (True, TypeError, "expected a number, got bool"),
    (-0.1, ValueError, r"expected at least 0, got -0\.1"),
    (float("nan"), ValueError, "expected at least 0, got nan"),
]
CHOICES = {
    "metric": ("manhattan", "expected one of euclidean, sqeuclidean, cosine, got 'manhattan'"),
    "reduction": ("median", "expected one of mean, sum, none, got 'median'"),
    "precision": ("half", "expected one of exact, fast, got 'half'"),
}


PAIRS = [
    (F.symmetric_kl, "a", "b", {}),
    (F.entropy_hinge, "raw", "purified", {}),
    (F.standardized_kl, "student", "teacher", {"temperatures": (4,)}),
]
VECTORS = [
    ([1.0], TypeError, r"expected a tensor \[N\], got list"),
    (LABELS, TypeError, "expected a floating-point tensor, got torch.int64"),
    (FEAT, ValueError, r"expected shape \[N\], got \[6, 4\]"),
]


def wrong_arguments_of_row_losses():
    for function, first, second, options in PAIRS:
        for value, error, message in ROWS:
            yield function, (value, FEAT), options, error, f"{first}: {message}"
            yield function, (FEAT, value), options, error, f"{second}: {message}"
        for value, shape in ((FEAT[:, :3], r"\[6, 3\]"), (FEAT[:5], r"\[5, 4\]")):
            message = rf"{second}: expected shape \[6, 4\] as {first}, got {shape}"
            yield function, (FEAT, value), options, ValueError, message
        message = f"{second}: expected torch.float32 as {first}, got torch.float64"
        yield function, (FEAT, FEAT.double()), options, TypeError, message
        message = f"{second}: expected device cpu as {first}, got meta"
        yield function, (FEAT, FEAT.to("meta")), options, ValueError, message
    for value, error, message in (
        (4, ValueError, "expected a divisor of the 6 rows, got 4"),
        (0, ValueError, "expected an integer >= 1, got 0"),
        (True, TypeError, "expected an integer, got bool"),
    ):
        yield F.symmetric_kl, (FEAT, FEAT), {"block": value}, error, f"block: {message}"
    for value, error, message in NUMBERS:
        yield F.entropy_hinge, (FEAT, FEAT), {"margin": value}, error, f"margin: {message}"
    for name, value, error, message in (
        ("temperatures", "4", TypeError, "expected a sequence of numbers, got str"),
        ("temperatures", (), ValueError, "expected at least one number, got 0"),
        ("weights", (1, 2), ValueError, "expected 1 numbers, got 2"),
        ("reduction", "max", ValueError, "expected one of mean, sum, none, got 'max'"),
        ("standardize", "l2", ValueError, "expected one of zscore, none, got 'l2'"),
        ("ddof", 2, ValueError, "expected one of 0, 1, got 2"),
        ("eps", -1, ValueError, "expected at least 0, got -1"),
        ("keep", FEAT[:5, 0], ValueError, r"expected shape \[6\], one per row of student, got \[5\]"),
        ("keep", FEAT[:, 0].to("meta"), ValueError, "expected device cpu as student, got meta"),
    ):
        options = {"temperatures": (4,)} | {name: value}
        yield F.standardized_kl, (FEAT, FEAT), options, error, f"{name}: {message}"
    for value, error, message in VECTORS:
        yield F.percentile_mask, (value,), {}, error, f"confidence: {message}"
        options = {"temperatures": (4,), "keep": value}
        yield F.standardized_kl, (FEAT, FEAT), options, error, f"keep: {message}"
    for value, error, message in ROWS:
        yield F.softmax_confidence, (value,), {}, error, f"logits: {message}"
    yield F.percentile_mask, (FEAT[:, 0], 101), {}, ValueError, r"q: expected 0 to 100, got 101"
    yield F.percentile_mask, (FEAT[:, 0],), {"keep": "mid"}, ValueError, "keep: expected one of high, low, got 'mid'"


def wrong_arguments():
    mining = (F.triplet_loss, F.hard_pairs)
    referring = (*mining, F.neighbor_loss)
    for function in (*mining, F.weighted_triplet_loss):
        for value, error, message in ROWS:
            yield function, (value, LABELS), {}, error, f"feat: {message}"
        for value, error, message in LABEL_ERRORS:
            yield function, (FEAT, value), {}, error, f"labels: {message.format('feat')}"
    for value, error, message in ROWS:
        yield F.pairwise_distance, (value,), {}, error, f"feat: {message}"
    for value, error, message in OTHER:
        yield F.pairwise_distance, (FEAT, value), {}, error, f"other: {message}"
        for function in referring:
            pair = {"reference": value, "reference_labels": LABELS}
            yield function, (FEAT, LABELS), pair, error, f"reference: {message}"
    for function in referring:
        for value, error, message in LABEL_ERRORS:
            pair = {"reference": FEAT, "reference_labels": value}
            yield function, (FEAT, LABELS), pair, error, f"reference_labels: {message.format('reference')}"
        together = "expected reference and reference_labels together, got None"
        yield function, (FEAT, LABELS), {"reference": FEAT}, ValueError, f"reference_labels: {together}"
        yield function, (FEAT, LABELS), {"reference_labels": LABELS}, ValueError, f"reference: {together}"
    for value, error, message in NUMBERS:
        yield F.triplet_loss, (FEAT, LABELS), {"margin": value}, error, f"margin: {message}"
        yield F.pairwise_distance, (FEAT,), {"floor": value}, error, f"floor: {message}"
    takes = {
        "metric": (*mining, F.pairwise_distance),
        "reduction": (F.triplet_loss, F.weighted_triplet_loss),
        "precision": (*mining, F.pairwise_distance, F.weighted_triplet_loss),
    }
    for name, (value, message) in CHOICES.items():
        for function in takes[name]:
            args = (FEAT,) if function is F.pairwise_distance else (FEAT, LABELS)
            yield function, args, {name: value}, ValueError, f"{name}: {message}"


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "error", "message"), [*wrong_arguments(), *wrong_arguments_of_row_losses()]
)
def test_a_wrong_argument_is_named(function, args, kwargs, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        function(*args, **kwargs)
