"""decoupled_kl: its two divergences written out, its sum with the right weights, rows that do not count."""

import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F


def by_rows(student, teacher, labels, alpha, beta, t):
    rows = []
    for s, u, y in zip(student, teacher, labels, strict=True):
        q, p = (s / t).softmax(0), (u / t).softmax(0)
        others = torch.arange(len(s)) != y
        binary = sum(a * (a / b).log() for a, b in ((p[y], q[y]), (1 - p[y], 1 - q[y])))
        p, q = p[others] / p[others].sum(), q[others] / q[others].sum()
        rows.append(t**2 * (alpha * binary + beta * (p * (p / q).log()).sum()))
    return torch.stack(rows)


@pytest.mark.parametrize("options", [(1.0, 8.0, 4.0), (0.5, 0.0, 1.0), (0.0, 2.0, 3.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_divergences(options, dtype):
    student, teacher = 3 * torch.randn(2, 6, 5, dtype=torch.float64)
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    named = dict(zip(("alpha", "beta", "temperature"), options, strict=True))
    ours = F.decoupled_kl(student, teacher, labels, reduction="none", **named)
    wide = student.detach().double().requires_grad_()
    wanted = by_rows(wide, teacher.double(), labels, *options)
    rtol = 1e-9 if dtype == torch.float64 else 1e-5
    assert ours.dtype == dtype
    assert_close(ours.double(), wanted, rtol=rtol, atol=rtol)
    (grad,), (oracle,) = torch.autograd.grad(ours.sum(), student), torch.autograd.grad(wanted.sum(), wide)
    assert_close(grad.double(), oracle, rtol=rtol, atol=rtol)
    assert_close(F.decoupled_kl(student, teacher, labels, **named), ours.mean())


def test_weighted_by_the_teachers_doubt_it_is_the_plain_divergence():
    """KL(p || q) = KL(b_t || b_s) + (1 - p_y) KL(r_t || r_s)."""
    student, teacher = torch.randn(2, 1, 7, dtype=torch.float64)
    labels = torch.tensor([3])
    doubt = 1 - teacher.softmax(1)[0, 3].item()
    ours = F.decoupled_kl(student, teacher, labels, alpha=1, beta=doubt, temperature=1)
    assert_close(ours, (teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))).sum())


def test_agreement_and_rows_that_do_not_count():
    teacher = torch.randn(4, 6)
    student = (teacher + torch.arange(4.0).unsqueeze(1)).requires_grad_()
    rows = F.decoupled_kl(student, teacher, torch.tensor([0, 5, 6, -1]), reduction="none")
    assert rows.abs().max() < 1e-6
    (grad,) = torch.autograd.grad(F.decoupled_kl(student, teacher.flip(1), torch.tensor([0, 5, 6, -1])), student)
    assert grad[:2].any(1).all()
    assert not grad[2:].any()
    assert F.decoupled_kl(student[:0], teacher[:0], torch.zeros(0, dtype=torch.int64)) == 0
    single = torch.randn(3, 1, requires_grad=True)
    loss = F.decoupled_kl(single, single.detach() + 1, torch.zeros(3, dtype=torch.int64))
    assert loss == 0
    assert not torch.autograd.grad(loss, single)[0].any()


def test_a_bad_row_stays_in_its_row():
    student, teacher = torch.randn(2, 4, 6)
    student[2, 1] = torch.nan
    student.requires_grad_()
    loss = F.decoupled_kl(student, teacher, torch.arange(4))
    assert not loss.isfinite()
    assert torch.autograd.grad(loss, student)[0][[0, 1, 3]].isfinite().all()
