"""Neighbor-probability loss: published numbers, the definition row by row, rows that do not count."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.losses import NeighborLoss

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_extra.npz"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(dtype):
    with np.load(GOLDEN) as golden:
        x, labels, value, wanted = (torch.from_numpy(golden[name]) for name in ("x", "y", "fb_loss", "fb_grad"))
    x = x.to(dtype).requires_grad_()
    loss = F.neighbor_loss(x, labels)
    (grad,) = torch.autograd.grad(loss, x)
    rtol = 1e-7 if dtype == torch.float64 else 1e-5  # the published code has 1 / k in float32
    assert_close(loss.double(), value, rtol=rtol, atol=0)
    assert_close(grad.double(), wanted, rtol=rtol, atol=1e-9 if dtype == torch.float64 else 1e-7)


def by_rows(x, labels):
    rows = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        log_p = (-(x[others] - x[i]).norm(dim=1)).log_softmax(0)
        target = (labels[others] == labels[i]).to(x)
        count = target.sum()
        rows.append(-(target * log_p).sum() / count - count.log() if count > 0 else 0 * x[i].sum())
    return torch.stack(rows)


def test_the_definition_row_by_row():
    labels = torch.tensor([4, 4, 0, -2, 4, 0, 9, -2])
    x = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    ours, wanted = F.neighbor_loss(x, labels, reduction="none"), by_rows(x, labels)
    assert_close(ours, wanted)
    assert ours[6] == 0
    weights = torch.arange(8.0, dtype=torch.float64)
    assert_close(*(torch.autograd.grad((weights * loss).sum(), x)[0] for loss in (ours, wanted)))
    assert_close(F.neighbor_loss(x, labels), wanted.mean())
    assert_close(F.neighbor_loss(x, labels, reduction="sum"), wanted.sum())


def test_a_bad_row_is_nobodys_neighbor():
    x, labels = torch.randn(8, 3), torch.arange(8) // 4
    x[2, 1] = torch.inf
    x.requires_grad_()
    rows = F.neighbor_loss(x, labels, reduction="none")
    assert rows[2].isnan()
    keep = [0, 1, 3, 4, 5, 6, 7]
    assert_close(rows[keep], F.neighbor_loss(x[keep], labels[keep], reduction="none"))
    assert not rows.mean().isfinite()
    assert torch.autograd.grad(rows.mean(), x)[0][keep].isfinite().all()


def info_nce(x, labels, y, to_labels, temperature):
    """Supervised InfoNCE row by row, positives outside the logarithm."""
    unit_x, unit_y = (torch.nn.functional.normalize(z) for z in (x, y))
    log_p = (unit_x @ unit_y.T / temperature).log_softmax(1)
    return torch.stack([-log_p[i, to_labels == labels[i]].mean() for i in range(len(x))])


def test_cosine_to_a_reference_is_info_nce_less_its_least():
    labels, to_labels = torch.tensor([0, 0, 1, 5, 5]), torch.tensor([5, 0, 1, 5, 0, 5, 1])
    x, y = torch.randn(5, 6, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    x.requires_grad_(), y.requires_grad_()
    options = {"reference": y, "reference_labels": to_labels, "metric": "cosine", "temperature": 0.05}
    ours = F.neighbor_loss(x, labels, reduction="none", **options)
    wanted = info_nce(x, labels, y, to_labels, 0.05)
    assert_close(ours, wanted - torch.tensor([2, 2, 2, 3, 3]).log(), rtol=1e-9, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(loss.sum(), (x, y)) for loss in (ours, wanted)), strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_bad_reference_row_is_never_silent():
    x, y, labels = torch.randn(4, 3), torch.randn(4, 3), torch.arange(4) // 2
    y[1, 0] = torch.nan
    x.requires_grad_(), y.requires_grad_()
    rows = F.neighbor_loss(x, labels, reference=y, reference_labels=labels, reduction="none")
    assert rows.isnan().all()
    to_x, to_y = torch.autograd.grad(rows.sum(), (x, y))
    assert to_x.isfinite().all()
    assert to_y[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_no_rows(n, m):
    x, y = torch.randn(n, 4, requires_grad=True), torch.randn(m, 4, requires_grad=True)
    labels, to_labels = torch.zeros(n, dtype=torch.int64), torch.zeros(m, dtype=torch.int64)
    loss = F.neighbor_loss(x, labels, reference=y, reference_labels=to_labels)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, (x, y)))


def test_module_is_its_function():
    x, labels = torch.randn(6, 4), torch.arange(6) // 2
    for options in ({}, {"reduction": "none"}, {"precision": "fast"}, {"metric": "cosine", "temperature": 0.1}):
        assert torch.equal(NeighborLoss(**options)(x, labels), F.neighbor_loss(x, labels, **options))
    to = {"reference": x.flip(0), "reference_labels": labels.flip(0)}
    assert torch.equal(NeighborLoss()(x, labels, *to.values()), F.neighbor_loss(x, labels, **to))
    assert repr(NeighborLoss()) == "NeighborLoss(metric='euclidean', temperature=1.0, reduction='mean')"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "max"}, "reduction: expected one of mean, sum, none, got 'max'"),
        ({"metric": "l2"}, "metric: expected one of euclidean, sqeuclidean, cosine, got 'l2'"),
        ({"temperature": 0}, "temperature: expected a number above 0, got 0"),
        ({"precision": "low"}, "precision: expected one of exact, fast, got 'low'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        NeighborLoss(**options)
