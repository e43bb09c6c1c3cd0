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


def wrong_arguments():
    mining = (F.triplet_loss, F.hard_pairs)
    for function in (*mining, F.weighted_triplet_loss):
        for value, error, message in ROWS:
            yield function, (value, LABELS), {}, error, f"feat: {message}"
        for value, error, message in LABEL_ERRORS:
            yield function, (FEAT, value), {}, error, f"labels: {message.format('feat')}"
    for value, error, message in ROWS:
        yield F.pairwise_distance, (value,), {}, error, f"feat: {message}"
    for value, error, message in OTHER:
        yield F.pairwise_distance, (FEAT, value), {}, error, f"other: {message}"
        for function in mining:
            pair = {"reference": value, "reference_labels": LABELS}
            yield function, (FEAT, LABELS), pair, error, f"reference: {message}"
    for function in mining:
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


@pytest.mark.parametrize(("function", "args", "kwargs", "error", "message"), wrong_arguments())
def test_a_wrong_argument_is_named(function, args, kwargs, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        function(*args, **kwargs)
