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


def test_module_is_its_function():
    x, labels = torch.randn(6, 4), torch.arange(6) // 2
    for options in ({}, {"reduction": "none"}, {"precision": "fast"}):
        assert torch.equal(NeighborLoss(**options)(x, labels), F.neighbor_loss(x, labels, **options))
    assert repr(NeighborLoss()) == "NeighborLoss(reduction='mean')"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "max"}, "reduction: expected one of mean, sum, none, got 'max'"),
        ({"precision": "low"}, "precision: expected one of exact, fast, got 'low'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        NeighborLoss(**options)
