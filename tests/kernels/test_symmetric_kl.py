from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.symmetric_kl import symmetric_kl
from vifast.testing import assert_close_to_oracle, check_op, check_values

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_kl.npz"


def logits(n, c, *, scale=1.0, dtype=torch.float32, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(2, n, c, generator=generator, dtype=torch.float64)
    return [side.to(device, dtype).requires_grad_() for side in x]


def plain(a, b, rows):
    """The published form: two means of sums of p (log p - log q), without care for digits."""
    side = [x.view(-1, rows, x.size(1)).transpose(0, 1).reshape(rows, -1).log_softmax(1) for x in (a, b)]
    ways = [(q.exp() * (q - p)).sum(1) for p, q in (side, side[::-1])]
    return ways[0] + ways[1]


def test_two_classes_done_by_hand(backend):
    a, b = torch.tensor([[0.0, 1.0]], device=backend.device), torch.tensor([[0.0, 0.0]], device=backend.device)
    p = exp(1) / (1 + exp(1))
    wanted = (p - 0.5) * log(p / 0.5) + (0.5 - p) * log((1 - p) / 0.5)
    assert F.symmetric_kl(a, b).item() == pytest.approx(wanted, rel=1e-6)


def test_a_block_lays_rows_side_by_side(backend):
    a, b = (x.detach() for x in logits(6, 4, device=backend.device))
    wide = [torch.stack([torch.cat((x[r], x[r + 2], x[r + 4])) for r in (0, 1)]) for x in (a, b)]
    assert_close(F.symmetric_kl(a, b, block=2), F.symmetric_kl(*wide))
    assert_close(F.symmetric_kl(a, b, block=6), F.symmetric_kl(a, b))


@pytest.mark.parametrize("case", "abc")
@pytest.mark.parametrize("form", ["bg", "sm"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(case, form, dtype, backend):
    with np.load(GOLDEN) as golden:
        sides = [torch.from_numpy(golden[f"{case}__logits{i}"]).to(backend.device, dtype) for i in (1, 2)]
        wanted = [torch.from_numpy(golden[f"{case}__{form}_{name}"]) for name in ("sym", "grad_1", "grad_2")]
        labels = golden[f"{case}__labels"]
    sides = [x.requires_grad_() for x in sides]
    loss = F.symmetric_kl(*sides, block=int((labels == labels[0]).sum()) // 2 if form == "sm" else None)
    for ours, theirs in zip((loss, *torch.autograd.grad(loss, sides)), wanted, strict=True):
        if dtype == torch.float64:
            assert_close(ours.cpu(), theirs, rtol=1e-9, atol=1e-11)
        else:
            assert_close_to_oracle(ours, theirs, length=sides[0].numel())


def test_op():
    check_op(symmetric_kl, lambda n: (*logits(n, 11), n), length=11, outputs=1)
    check_op(symmetric_kl, lambda n: (*logits(n, 7, seed=1), 3), length=21, outputs=1)


@pytest.mark.parametrize(
    ("n", "c", "rows"), [(1, 1, 1), (5, 3, 5), (60, 395, 60), (60, 206, 5), (4, 2049, 2), (9, 70, 1)]
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_values_on_every_back_end(backend, n, c, rows, scale):
    check_values(
        symmetric_kl, (*logits(n, c, scale=scale, device=backend.device), rows), length=n * c // rows, outputs=1
    )


def test_gradcheck():
    a, b = logits(6, 5, dtype=torch.float64)
    for block in (None, 2):
        assert torch.autograd.gradcheck(lambda x, y, k=block: F.symmetric_kl(x, y, block=k), (a, b))


def test_closed_form_is_autograd_of_the_published_form():
    a, b = logits(12, 9, dtype=torch.float64)
    for rows in (12, 4):
        ours = torch.autograd.grad(F.symmetric_kl(a, b, block=rows), (a, b))
        theirs = torch.autograd.grad(plain(a, b, rows).mean(), (a, b))
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_close_rows_keep_their_digits(backend, gap, offset):
    if backend.name == "triton" and gap == 1e-2:
        pytest.skip("two gaps are enough for the interpreter")
    a = logits(8, 395, scale=3.0)[0].detach() + offset
    b = a + gap * torch.randn(8, 395)
    sides = [x.to(backend.device).requires_grad_() for x in (a, b)]
    loss = F.symmetric_kl(*sides)
    exact = [x.detach().cpu().double().requires_grad_() for x in sides]
    oracle = F.symmetric_kl(*exact)
    assert loss.item() == pytest.approx(oracle.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, sides), torch.autograd.grad(oracle, exact), strict=True):
        assert_close_to_oracle(ours, theirs, length=395)


def test_equal_rows_are_exactly_zero(backend):
    a = logits(5, 33, scale=5.0, device=backend.device)[0]
    loss = F.symmetric_kl(a, a.detach().clone())
    loss.backward()
    assert loss.item() == 0
    assert a.grad.abs().max() == 0


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_far_rows_do_not_overflow(backend, scale):
    sides = logits(4, 20, scale=scale, device=backend.device)
    exact = [x.detach().cpu().double().requires_grad_() for x in sides]
    loss, oracle = F.symmetric_kl(*sides), F.symmetric_kl(*exact)
    assert loss.item() == pytest.approx(oracle.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, sides), torch.autograd.grad(oracle, exact), strict=True):
        assert (ours.cpu() - theirs).abs().max() < 1e-6 * scale  # p (x - KL) is a difference of values of that size


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_row_stays_in_its_row(backend, bad):
    a, b = logits(6, 40, device=backend.device)
    with torch.no_grad():
        a[2, 3] = bad
    rows, _ = symmetric_kl(a, b, 6)
    assert rows.isfinite().tolist() == [True, True, False, True, True, True]
    for grad in torch.autograd.grad(rows.sum(), (a, b)):
        assert grad[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize(("n", "c", "block"), [(0, 5, None), (0, 5, 3), (4, 0, None), (4, 0, 2)])
def test_nothing_to_compare(backend, n, c, block):
    a, b = logits(n, c, device=backend.device)
    loss = F.symmetric_kl(a, b, block=block)
    loss.backward()
    assert loss.item() == 0
    assert a.grad.shape == (n, c)
