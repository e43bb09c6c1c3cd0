from math import exp, log1p
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.weighted_triplet import weighted_triplet
from vifast.testing import assert_close_to_oracle, check_op, check_values, features, tolerance

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_agw_wrt.npz"


def apart(n, distance, dtype=torch.float32):
    """Identities of two rows each, all in dimensions of their own, so every distance is near ``distance``."""
    labels = torch.arange(n) // 2
    return (distance / 2**0.5) * torch.eye(n, dtype=dtype), labels


def wrt_by_hand(dist, labels, eps):
    """The formula of spec idkl 13 in a loop over rows, with weights of a true softmax for ``eps=0``."""
    losses = []
    for row, own in zip(dist, labels, strict=True):
        pos, neg = row[labels == own], row[labels != own]
        w_pos = (pos - pos.max()).exp() / ((pos - pos.max()).exp().sum() + eps)
        shift = neg.min() if eps == 0 else 0.0
        w_neg = (shift - neg).exp() / ((shift - neg).exp().sum() + eps)
        losses.append(torch.nn.functional.softplus((w_pos * pos).sum() - (w_neg * neg).sum()))
    return torch.stack(losses)


def test_three_points_done_by_hand(backend):
    feat = torch.tensor([[0.0], [2.0], [3.0]], device=backend.device)
    labels = torch.tensor([0, 0, 1], device=backend.device)
    loss = F.weighted_triplet_loss(feat, labels, reduction="none")
    p_0 = (2 + 1e-6 * exp(-2)) / (1 + exp(-2) + 1e-6)  # distances 2 and the floor, weighed e^0 and e^-2
    q = [3 * exp(-3) / (exp(-3) + 1e-6), exp(-1) / (exp(-1) + 1e-6)]
    q.append((3 * exp(-3) + exp(-1)) / (exp(-3) + exp(-1) + 1e-6))
    p = [p_0, p_0, 1e-6]
    wanted = [log1p(exp(p_i - q_i)) for p_i, q_i in zip(p, q, strict=True)]
    assert_close(loss.cpu(), torch.tensor(wanted), rtol=1e-6, atol=0)


@pytest.mark.parametrize("stable", [False, True])
def test_formula_row_by_row(backend, stable):
    feat, labels = features(37, 11, device=backend.device)
    x, y = feat.double().cpu(), labels.cpu()
    dist = ((x[:, None] - x).square().sum(-1)).clamp(min=1e-12).sqrt()
    loss = F.weighted_triplet_loss(feat, labels, stable=stable, reduction="none")
    assert_close_to_oracle(loss, wrt_by_hand(dist, y, 0.0 if stable else 1e-6), length=37)


@pytest.mark.parametrize("case", "abcd")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(case, dtype, backend):
    if backend.name == "triton" and case == "d":
        pytest.skip("three cases are enough for the interpreter")
    with np.load(GOLDEN) as golden:
        x, y, loss, grad = (torch.from_numpy(golden[f"{case}__{name}"]) for name in ("x", "y", "loss", "grad_x"))
        normalize = bool(golden[f"{case}__normalize"])
    feat = x.to(backend.device, dtype).requires_grad_()
    actual = F.weighted_triplet_loss(feat, y.to(backend.device), normalize=normalize)
    actual.backward()
    for ours, wanted in ((actual, loss), (feat.grad, grad)):
        if dtype == torch.float64:
            assert_close(ours.cpu(), wanted, rtol=1e-9, atol=1e-9)
        else:
            assert_close_to_oracle(ours, wanted, length=len(x))


def test_golden_weights():
    with np.load(GOLDEN) as golden:
        x, y, w_pos, w_neg, dist = (
            torch.from_numpy(golden[f"a__{name}"]) for name in ("x", "y", "w_pos", "w_neg", "dist")
        )
    _, saved, *_ = weighted_triplet(x.double(), y, False, "exact", "none")
    _, top, inv_pos, p, least, inv_neg, q = saved.unsqueeze(2)
    same = y.unsqueeze(1) == y
    assert_close(torch.where(same, (dist - top).exp() * inv_pos, 0.0), w_pos, rtol=1e-9, atol=1e-9)
    assert_close(torch.where(same, 0.0, (least - dist).exp() * inv_neg), w_neg, rtol=1e-9, atol=1e-9)
    assert_close(p.squeeze(1), (w_pos * dist).sum(1), rtol=1e-9, atol=1e-9)
    assert_close(q.squeeze(1), (w_neg * dist).sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stable", [False, True])
def test_op(stable):
    def make_args(n):
        feat, labels = features(n, 7, num_instances=3)
        return feat.requires_grad_(), labels, stable, "exact", "mean" if stable else "none"

    check_op(weighted_triplet, make_args, length=9, outputs=1)


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("n", [34, 129, 300])  # one tile kept for the backward, the first that is not, several tiles
def test_values_on_every_back_end(backend, stable, n):
    if backend.name == "triton" and n > 129:
        pytest.skip("slow in the interpreter")
    feat, labels = features(n, 5, device=backend.device)
    check_values(weighted_triplet, (feat.requires_grad_(), labels, stable, "exact", "none"), length=n, outputs=1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("n", [3, 16, 65, 128, 129])  # less than a block of anchors, one, several, the first beyond
def test_reductions_on_every_back_end(backend, reduction, n):
    feat, labels = features(n, 140, num_instances=3, device=backend.device)  # two blocks of columns
    args = (feat.requires_grad_(), labels, reduction == "sum", "exact", reduction)
    check_values(weighted_triplet, args, length=n, outputs=1)


@pytest.mark.slow
def test_more_rows_than_a_strip(backend):
    feat, labels = features(520, 3, num_instances=8, device=backend.device)
    check_values(weighted_triplet, (feat.requires_grad_(), labels, False, "exact", "mean"), length=520, outputs=1)


@pytest.mark.parametrize("stable", [False, True])
def test_gradcheck(stable):
    feat, labels = features(9, 4, num_instances=3, dtype=torch.float64)
    feat.requires_grad_()
    for normalize in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, n=normalize: F.weighted_triplet_loss(x, labels, stable=stable, normalize=n, reduction="none"),
            feat,
        )


@pytest.mark.parametrize("distance", [10.0, 14.0, 16.0, 20.0, 40.0])
def test_published_negatives_fade_and_stable_ones_do_not(backend, distance):
    feat, labels = (t.to(backend.device) for t in apart(16, distance))
    published = F.weighted_triplet_loss(feat, labels)
    stable = F.weighted_triplet_loss(feat, labels, stable=True)
    share = 14 * exp(-distance) / (14 * exp(-distance) + 1e-6)  # what the weights of fourteen negatives still sum to
    weight = 1 / (1 + exp(-distance))  # the partner's, against the anchor itself at the floor
    bounds = tolerance(torch.float32, 16, distance)
    assert_close(published.item(), log1p(exp(distance * (weight - share))), **bounds)
    assert_close(stable.item(), log1p(exp(distance * (weight - 1))), **bounds)


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("distance", [88.0, 100.0, 1e3, 1e6])
def test_no_overflow_at_large_gaps(backend, stable, distance):
    feat = torch.tensor([[0.0], [1.0], [0.5], [0.6]], device=backend.device) * distance
    feat.requires_grad_()
    labels = torch.tensor([0, 0, 1, 1], device=backend.device)
    loss = F.weighted_triplet_loss(feat, labels, stable=stable, reduction="none")
    loss.sum().backward()
    assert loss.isfinite().all()
    assert feat.grad.isfinite().all()
    if not stable:
        assert loss[0] > 0.9 * distance  # its positive is at `distance`, its negatives have faded
    oracle = F.weighted_triplet_loss(feat.detach().double(), labels, stable=stable, reduction="none")
    assert_close_to_oracle(loss, oracle, length=4)


def test_an_anchor_without_negatives_is_left_out_of_the_stable_loss_only(backend):
    feat = torch.randn(3, 4, device=backend.device, requires_grad=True)
    labels = torch.zeros(3, dtype=torch.int64, device=backend.device)
    stable = F.weighted_triplet_loss(feat, labels, stable=True, reduction="none")
    assert stable.tolist() == [0, 0, 0]
    published = F.weighted_triplet_loss(feat, labels, reduction="none")
    assert (published > 0.69).all()  # softplus(p - 0)
    (stable.sum() + published.sum()).backward()
    assert feat.grad.isfinite().all()


def test_a_bad_row_makes_every_loss_nan(backend):
    feat, labels = features(9, 4, device=backend.device)
    feat[2] = torch.nan
    for stable in (False, True):
        assert F.weighted_triplet_loss(feat, labels, stable=stable, reduction="none").isnan().all()
