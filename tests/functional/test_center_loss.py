"""Center loss and center-cluster loss: published numbers, small numbers by hand, rows that do not count."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.losses import CenterClusterLoss, CenterLoss

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_extra.npz"
TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-11}, torch.float32: {"rtol": 1e-5, "atol": 1e-6}}


def golden(dtype):
    with np.load(GOLDEN) as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    return data, data["x"].to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_center_loss(dtype):
    data, x = golden(dtype)
    loss = F.center_loss(x, data["y"], data["centers"].to(dtype))
    (grad,) = torch.autograd.grad(loss, x)
    assert_close(loss.double(), data["center_loss"], **TOLERANCE[dtype])
    assert_close(grad.double(), data["center_grad"], **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_center_cluster(dtype):
    data, x = golden(dtype)
    loss = F.center_cluster_loss(x, data["y"])
    (grad,) = torch.autograd.grad(loss, x)
    assert_close(loss.double(), data["cc_loss"], **TOLERANCE[dtype])
    assert_close(grad.double(), data["cc_grad"], **TOLERANCE[dtype])
    assert_close(F.center_cluster_loss(x, data["y"], margin=0).double(), data["cc_pull"], **TOLERANCE[dtype])
    push = loss.detach() - F.center_cluster_loss(x, data["y"], margin=0).detach()
    assert_close(push.double(), data["cc_push"], rtol=0, atol=TOLERANCE[dtype]["atol"])


def clusters(x, labels, margin):
    """The definition, identity by identity."""
    ids = labels.unique()
    centers = {k.item(): x[labels == k].mean(0) for k in ids}
    pull = torch.stack([(row - centers[k.item()]).norm() for row, k in zip(x, labels, strict=True)]).mean()
    push = [
        torch.stack([(margin - (a - b).norm()).relu() for j, b in centers.items() if j != i]).mean()
        for i, a in centers.items()
    ]
    return pull + torch.stack(push).mean()


@pytest.mark.parametrize("counts", [(1, 1), (3, 1, 2), (2, 2, 2, 5)])
def test_push_counts_an_identity_once(counts):
    labels = torch.cat([torch.full((n,), 7 - 3 * k) for k, n in enumerate(counts)])
    x = (0.2 * torch.randn(len(labels), 5, dtype=torch.float64)).requires_grad_()
    ours, wanted = F.center_cluster_loss(x, labels, margin=3.0), clusters(x, labels, 3.0)
    assert_close(ours, wanted)
    assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, wanted)))
    order = torch.randperm(len(labels))
    assert_close(F.center_cluster_loss(x[order], labels[order], margin=3.0), wanted)


def test_center_loss_of_every_pair():
    x, centers = torch.randn(6, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    x.requires_grad_(), centers.requires_grad_()
    labels = torch.tensor([2, 0, 0, 1, 2, 2])
    own = torch.nn.functional.one_hot(labels, 3)
    wanted = (own * torch.cdist(x, centers).square()).mean()
    ours = F.center_loss(x, labels, centers)
    assert_close(ours, wanted)
    for one, other in zip(*(torch.autograd.grad(loss, (x, centers)) for loss in (ours, wanted)), strict=True):
        assert_close(one, other)


def test_labels_outside_the_classes_add_nothing():
    x, centers = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    some = F.center_loss(x, torch.tensor([0, 5, -1, 1]), centers)
    whole = F.center_loss(x[::3], torch.arange(2), centers)
    assert_close(4 * some, 2 * whole)
    to_x, _ = torch.autograd.grad(some, (x, centers))
    assert not to_x[1:3].any()


@pytest.mark.parametrize(("n", "k"), [(0, 3), (4, 0), (0, 0)])
def test_center_loss_of_nothing(n, k):
    x, centers = torch.randn(n, 3, requires_grad=True), torch.randn(k, 3, requires_grad=True)
    loss = F.center_loss(x, torch.zeros(n, dtype=torch.int64), centers)
    assert loss.item() == 0
    assert all(not grad.any() for grad in torch.autograd.grad(loss, (x, centers)))


def test_a_bad_row_spoils_its_own_identity_alone():
    x, labels = torch.randn(8, 3), torch.arange(8) // 2
    x[2] = torch.nan
    x.requires_grad_()
    loss = F.center_cluster_loss(x, labels, margin=9.0)
    assert not loss.isfinite()
    (grad,) = torch.autograd.grad(loss, x)
    assert grad[[0, 1, 4, 5, 6, 7]].isfinite().all()


def test_modules_are_their_functions():
    x, labels = torch.randn(6, 4), torch.arange(6) // 2
    module = CenterLoss(3, 4)
    assert torch.equal(module(x, labels), F.center_loss(x, labels, module.centers))
    assert list(module.state_dict()) == ["centers"]
    assert module(x.half(), labels).isfinite()
    assert torch.equal(CenterClusterLoss(margin=2)(x, labels), F.center_cluster_loss(x, labels, margin=2))
    assert repr(module) == "CenterLoss(num_classes=3, channels=4)"
    assert repr(CenterClusterLoss()) == "CenterClusterLoss(margin=0.7)"


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (CenterLoss, {"num_classes": 0}, ValueError, "num_classes: expected an integer >= 1, got 0"),
        (CenterLoss, {"num_classes": 2, "channels": 2.0}, TypeError, "channels: expected an integer, got float"),
        (CenterClusterLoss, {"margin": -1}, ValueError, "margin: expected at least 0, got -1"),
        (CenterClusterLoss, {"precision": "low"}, ValueError, "precision: expected one of exact, fast, got 'low'"),
    ],
)
def test_a_wrong_option_is_named(module, options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        module(**options)
