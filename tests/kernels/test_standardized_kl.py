import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.standardized_kl import standardized_kl
from vifast.testing import assert_close_to_oracle, check_op, check_values

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
OPTIONS = (True, 1, 1e-7, True)


def pair(n, d, *, near=None, scale=1.0, dtype=torch.float32, device="cpu", seed=0):
    """Student and teacher rows; ``near`` is how far the student is from the teacher."""
    generator = torch.Generator().manual_seed(seed)
    teacher, student = scale * torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    student = student if near is None else teacher + near * student
    return student.to(device, dtype).requires_grad_(), teacher.to(device, dtype)


def peaked(n, d, **options):
    """Profiles with one class far above the rest, as a trained teacher's."""
    student, teacher = pair(n, d, **options)
    peak = 15 * torch.nn.functional.one_hot(torch.arange(n) % d, d).to(teacher)
    return (student.detach() + peak).requires_grad_(), teacher + peak


def plain(student, teacher, temperatures):
    """z-scores by NumPy's formula, sum of T^2 p log(p / q)."""
    z_s, z_t = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (student, teacher))
    total = 0
    for t in temperatures:
        log_p, log_q = (z_t / t).log_softmax(1), (z_s / t).log_softmax(1)
        total = total + t**2 * (log_p.exp() * (log_p - log_q)).sum(1)
    return total


def op_args(student, teacher, temperatures=TEMPERATURES, scale=None, options=OPTIONS):
    return student, teacher, scale, list(temperatures), [0.5 + 0.1 * t for t in temperatures], *options


def test_two_columns_done_by_hand(backend):
    student, teacher = torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 1.0]])  # z = -+1 / sqrt 2, and the opposite
    p = 1 / (1 + np.exp(-(2**0.5) / 2))
    wanted = 4 * ((2 * p - 1) * (2**0.5) / 2)
    loss = F.standardized_kl(student.to(backend.device), teacher.to(backend.device), (2,))
    assert loss.item() == pytest.approx(wanted, rel=1e-6)


def test_formula_weights_keep_and_reductions(backend):
    student, teacher = pair(7, 50, device=backend.device)
    exact = student.detach().cpu().double(), teacher.cpu().double()
    parts = torch.stack([plain(*exact, (t,)) for t in TEMPERATURES], 1)
    rows = F.standardized_kl(student, teacher, TEMPERATURES, reduction="none")
    assert_close_to_oracle(rows, parts.sum(1), length=50)
    weights, keep = (1, 0, 0.5, 2, 0.25), torch.tensor([1.0, 0, 1, 1, 0, 0.5, 1])
    wanted = keep.double() * (parts @ torch.tensor(weights, dtype=torch.float64))
    options = {"weights": weights, "keep": keep.to(backend.device)}
    assert_close_to_oracle(F.standardized_kl(student, teacher, TEMPERATURES, **options), wanted.sum() / 7, length=50)
    total = F.standardized_kl(student, teacher, TEMPERATURES, reduction="sum", **options)
    assert_close_to_oracle(total, wanted.sum(), length=50)


@pytest.mark.parametrize("temperatures", [(2, 3, 4, 5, 6), (4,), (1, 2.5, 12, 3), (0.7,)])
@pytest.mark.parametrize("columns", [None, 1, "all"])
def test_op(temperatures, columns):
    def make_args(n):
        scale = None if columns is None else torch.rand(n, 1 if columns == 1 else len(temperatures))
        return op_args(*pair(n, 21), temperatures, scale)

    check_op(standardized_kl, make_args, length=21, outputs=1)


@pytest.mark.parametrize(("n", "d"), [(1, 3), (5, 4), (64, 395), (9, 2048), (3, 2049), (2, 300)])
@pytest.mark.parametrize("make", [pair, peaked])
def test_values_on_every_back_end(backend, n, d, make):
    check_values(standardized_kl, op_args(*make(n, d, device=backend.device)), length=d, outputs=1)


@pytest.mark.parametrize("options", [(False, 1, 1e-7, True), (True, 0, 1e-7, True), (True, 1, 0.5, True)])
def test_options_on_every_back_end(backend, options):
    args = op_args(*pair(6, 70, scale=3.0, device=backend.device), options=options)
    check_values(standardized_kl, args, length=70, outputs=1)


WIDE = 2500  # more columns than a program of a GPU keeps in registers


@pytest.mark.parametrize("options", [(False, 1, 1e-7, True), (True, 0, 1e-7, True), (True, 1, 1e-7, False)])
@pytest.mark.parametrize("columns", [None, 1, 5])
def test_options_of_wide_rows(backend, options, columns):
    student, teacher = pair(3, WIDE, device=backend.device)
    scale = None if columns is None else torch.rand(3, columns).to(backend.device)
    student = student.detach().requires_grad_(options[3])
    check_values(standardized_kl, op_args(student, teacher, scale=scale, options=options), length=WIDE, outputs=1)


def test_edges_of_wide_rows(backend):
    student, teacher = pair(4, WIDE, near=1e-3, device=backend.device)
    with torch.no_grad():
        student[1], student[2, 2400] = 0.1, torch.nan
    rows = F.standardized_kl(student, teacher, TEMPERATURES, reduction="none")
    exact = student.detach().cpu().double(), teacher.cpu().double()
    oracle = F.standardized_kl(*exact, TEMPERATURES, reduction="none")
    assert rows.isnan().tolist() == [False, False, True, False]
    assert_close(rows.detach().cpu().double(), oracle, rtol=1e-5, atol=0, equal_nan=True)
    (grad,) = torch.autograd.grad(rows.sum(), student)
    assert grad[[0, 1, 3]].isfinite().all()
    assert grad[[0, 3]].any(1).all()


@pytest.mark.parametrize("near", [1e-2, 1e-4])
@pytest.mark.parametrize("make", [pair, peaked])
def test_agreeing_rows_keep_their_digits(backend, near, make):
    student, teacher = make(8, 395, near=near, device=backend.device)
    rows = F.standardized_kl(student, teacher, TEMPERATURES, reduction="none")
    exact = student.detach().cpu().double().requires_grad_(), teacher.cpu().double()
    oracle = F.standardized_kl(*exact, TEMPERATURES, reduction="none")
    assert_close(rows.cpu().double(), oracle, rtol=1e-5, atol=0)
    (grad,), (oracle_grad,) = (torch.autograd.grad(x.sum(), y) for x, y in ((rows, student), (oracle, exact[0])))
    assert_close_to_oracle(grad, oracle_grad, length=395)


def test_closed_form_gradient_is_autograd_of_the_formula():
    student, teacher = pair(9, 40, dtype=torch.float64)
    (ours,) = torch.autograd.grad(F.standardized_kl(student, teacher, TEMPERATURES, reduction="sum"), student)
    (theirs,) = torch.autograd.grad(plain(student, teacher, TEMPERATURES).sum(), student)
    assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_scale_and_offset_of_a_row_do_not_matter(backend):
    _, teacher = pair(6, 128, device=backend.device)
    student = (3 * teacher + 2).requires_grad_()
    loss = F.standardized_kl(student, teacher, TEMPERATURES)
    (grad,) = torch.autograd.grad(loss, student)
    assert abs(loss.item()) < 1e-11
    assert grad.abs().max() < 1e-7
    other, _ = pair(6, 128, device=backend.device, seed=1)
    assert_close(F.standardized_kl(5 * other - 1, teacher, (2,)), F.standardized_kl(other, teacher, (2,)))


def test_at_high_temperature_it_is_one_minus_correlation(backend):
    student, teacher = (x.detach() for x in pair(16, 2048, device=backend.device))
    rho = torch.tensor([np.corrcoef(s, t)[0, 1] for s, t in zip(student.cpu(), teacher.cpu(), strict=True)])
    actual = F.standardized_kl(student, teacher, (200,))
    assert_close(actual.cpu().double(), (1 - rho).mean() * 2047 / 2048, rtol=2e-4, atol=0)


def test_gradient_is_orthogonal_to_ones_and_to_the_row_and_scales_inversely(backend):
    student, teacher = pair(5, 64, device=backend.device)
    (grad,) = torch.autograd.grad(F.standardized_kl(student, teacher, TEMPERATURES), student)
    z = student.detach() - student.detach().mean(1, keepdim=True)
    assert grad.sum(1).abs().max() < 1e-6
    assert (grad * z).sum(1).abs().max() < 1e-5
    scaled = (4 * student.detach()).requires_grad_()
    (quarter,) = torch.autograd.grad(F.standardized_kl(scaled, teacher, TEMPERATURES), scaled)
    assert_close(4 * quarter, grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("d", [1, 2, 30])
def test_constant_rows_are_zeros(backend, d):
    student, teacher = torch.full((3, d), 0.1, device=backend.device).requires_grad_(), pair(3, d)[1].to(backend.device)
    check_values(standardized_kl, op_args(student, teacher), length=d, outputs=1)
    loss = F.standardized_kl(student, student.detach().clone(), TEMPERATURES)
    (grad,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0
    assert grad.abs().max() == 0


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_raw_rows_do_not_overflow(backend, scale):
    args = op_args(*pair(4, 20, scale=scale, device=backend.device), options=(False, 1, 1e-7, True))
    check_values(standardized_kl, args, length=20, outputs=1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("standardize", ["zscore", "none"])
def test_a_bad_row_stays_in_its_row(backend, bad, side, standardize):
    sides = pair(6, 40, device=backend.device)
    with torch.no_grad():
        sides[side][2, 3] = bad
    rows = F.standardized_kl(*sides, TEMPERATURES, reduction="none", standardize=standardize)
    assert rows.isfinite().tolist() == [True, True, False, True, True, True]
    (grad,) = torch.autograd.grad(rows.sum(), sides[0])
    assert grad[[0, 1, 3, 4, 5]].isfinite().all()


def test_a_dropped_row_gets_no_gradient_and_the_teacher_never_does(backend):
    student, teacher = pair(4, 12, device=backend.device)
    keep = torch.tensor([1.0, 0, 1, 0], device=backend.device)
    teacher.requires_grad_()
    F.standardized_kl(student, teacher, (4,), keep=keep).backward()
    assert student.grad[keep == 0].abs().max() == 0
    assert student.grad[keep == 1].abs().min() > 0
    assert teacher.grad is None


def test_no_slope_where_no_gradient_is_wanted():
    student, teacher = pair(4, 12)
    assert standardized_kl(*op_args(student.detach(), teacher, options=(True, 1, 1e-7, False)))[1].shape == (0, 0)
    with torch.no_grad():
        assert not F.standardized_kl(student, teacher, (4,)).requires_grad


@pytest.mark.parametrize(("n", "d"), [(0, 5), (4, 0)])
def test_nothing_to_compare(backend, n, d):
    student, teacher = pair(n, d, device=backend.device)
    loss = F.standardized_kl(student, teacher, TEMPERATURES)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == (n, d)
