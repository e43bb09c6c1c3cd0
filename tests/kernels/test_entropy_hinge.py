from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.entropy_hinge import entropy_hinge
from vifast.testing import assert_close_to_oracle, check_op, check_values

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_iploss.npz"


def logits(n, c, *, scale=1.0, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(2, n, c, generator=generator, dtype=torch.float64)
    return [side.to(device, dtype).requires_grad_() for side in x]


def test_a_certain_and_an_uncertain_row_done_by_hand(backend):
    certain, even = torch.tensor([[200.0, 0.0]]), torch.zeros(1, 2)
    raw, purified = torch.cat((certain, even)).to(backend.device), torch.cat((even, certain)).to(backend.device)
    assert F.entropy_hinge(raw, purified).item() == pytest.approx((2.0 - 1.0) / 2, rel=1e-6)  # exp(log 2) - 1, and 0
    assert F.entropy_hinge(raw, purified, margin=log(4)).item() == pytest.approx((7.0 + 1.0) / 2, rel=1e-6)


@pytest.mark.parametrize("case", "abc")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(case, dtype, backend):
    with np.load(GOLDEN) as golden:
        sides = [
            torch.from_numpy(golden[f"{case}__logits_{name}"]).to(backend.device, dtype) for name in ("raw", "pur")
        ]
        names = ("loss_entropy", "grad_logits_raw", "grad_logits_pur", "entropy_raw")
        *wanted, entropy = (torch.from_numpy(golden[f"{case}__{name}"]) for name in names)
        margin = float(golden[f"{case}__margin"])
    sides = [x.requires_grad_() for x in sides]
    loss = F.entropy_hinge(*sides, margin=margin)
    saved = entropy_hinge(*sides, margin)[1][2]
    for ours, theirs in zip((loss, *torch.autograd.grad(loss, sides), saved), (*wanted, entropy), strict=True):
        if dtype == torch.float64:
            assert_close(ours.cpu(), theirs, rtol=1e-9, atol=1e-11)
        else:
            assert_close_to_oracle(ours.to(dtype), theirs, length=sides[0].size(1))


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_op(margin):
    check_op(entropy_hinge, lambda n: (*logits(n, 11), margin), length=11, outputs=1)


@pytest.mark.parametrize(("n", "c"), [(1, 5), (5, 3), (60, 395), (3, 2049)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_values_on_every_back_end(backend, n, c, scale):
    check_values(entropy_hinge, (*logits(n, c, scale=scale, device=backend.device), 0.1), length=c, outputs=1)


def test_gradcheck():
    a, b = logits(6, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, y: F.entropy_hinge(x, y, margin=0.2), (a, b))


@pytest.mark.parametrize("gap", [1e-3, 1e-5])
def test_close_rows_keep_their_digits(backend, gap):
    raw = logits(8, 395, scale=3.0)[0].detach()
    sides = [x.to(backend.device) for x in (raw, raw + gap * torch.randn(8, 395))]
    rows, _ = entropy_hinge(*sides, 0.0)
    oracle, _ = entropy_hinge.definition(*(x.cpu().double() for x in sides), 0.0)
    assert 1 <= (rows > 0).sum() <= 7
    assert_close(rows.cpu().double(), oracle, rtol=1e-4, atol=1e-12)


def test_equal_rows_are_exactly_zero(backend):
    raw = logits(5, 33, scale=5.0, device=backend.device)[0]
    loss = F.entropy_hinge(raw, raw.detach().clone())
    loss.backward()
    assert loss.item() == 0
    assert raw.grad.abs().max() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_bad_row_stays_in_its_row(backend, bad, side):
    sides = logits(6, 40, device=backend.device)
    with torch.no_grad():
        sides[side][2, 3] = bad
    rows, _ = entropy_hinge(*sides, 0.0)
    assert rows.isfinite().tolist() == [True, True, False, True, True, True]
    for grad in torch.autograd.grad(rows.sum(), sides):
        assert grad[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize(("n", "c"), [(0, 5), (4, 0)])
def test_nothing_to_compare(backend, n, c):
    a, b = logits(n, c, device=backend.device)
    loss = F.entropy_hinge(a, b)
    loss.backward()
    assert loss.item() == 0
    assert a.grad.shape == (n, c)
