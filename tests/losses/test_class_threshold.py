import pytest
import torch
from torch.testing import assert_close

from vifast.losses.class_threshold import ClassThreshold


def batches(count, n=8, k=4):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        logits = 2 * torch.randn(n, k, generator=generator)
        yield logits, torch.rand(n, generator=generator) < 0.7


@pytest.mark.parametrize("high", [True, False])
def test_averages_and_kept_rows_by_hand(high):
    sure, theta, share = ClassThreshold(4, momentum=0.9, high=high), None, None
    for logits, counted in batches(6):
        p = [[x / sum(row) for x in row] for row in logits.exp().tolist()]
        rows = [row for row, count in zip(p, counted, strict=True) if count]
        mean, classes = sum(map(max, rows)) / len(rows), [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        theta = mean if theta is None else 0.9 * theta + 0.1 * mean
        share = classes if share is None else [0.9 * a + 0.1 * b for a, b in zip(share, classes, strict=True)]
        bars = [theta * share[row.index(max(row))] / max(share) for row in p]
        wanted = [max(row) >= bar if high else max(row) <= bar for row, bar in zip(p, bars, strict=True)]
        assert sure(logits, counted).tolist() == wanted
        assert_close(sure.threshold, torch.tensor(theta))
        assert_close(sure.share, torch.tensor(share))


def test_averages_stay_in_evaluation_and_without_finite_rows():
    sure = ClassThreshold(4, momentum=0.5)
    first, second, third = (logits for logits, _ in batches(3))
    every = torch.ones(8, dtype=torch.bool)
    sure(first, every)
    before = sure.state_dict()["threshold"].clone(), sure.state_dict()["share"].clone()
    sure.eval()(second, every)
    sure.train()(second, ~every)
    bad = third.clone()
    bad[2] = torch.nan
    assert not sure(bad, every)[2]
    assert torch.equal(sure.threshold, before[0])
    assert torch.equal(sure.share, before[1])
    kept = sure(bad, every & (torch.arange(8) != 2))
    assert not torch.equal(sure.threshold, before[0])
    assert sure.threshold.isfinite()
    assert kept.any()


def test_before_any_batch_the_batch_itself_counts():
    sure = ClassThreshold(4).eval()
    (logits, _), *_ = batches(1)
    every = torch.ones(8, dtype=torch.bool)
    trained = ClassThreshold(4)
    assert torch.equal(sure(logits, every), trained(logits, every))
    assert sure.threshold.isnan()


def test_one_graph():
    sure, twin = ClassThreshold(4, momentum=0.9), ClassThreshold(4, momentum=0.9)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for batch in batches(3):
        assert torch.equal(compiled(*batch), sure(*batch))
    assert_close(twin.share, sure.share)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((0,), {}, ValueError, "num_classes: expected an integer >= 1, got 0"),
        ((4,), {"momentum": 2}, ValueError, "momentum: expected 0 to 1, got 2"),
    ],
)
def test_a_wrong_option_is_named(args, options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        ClassThreshold(*args, **options)
