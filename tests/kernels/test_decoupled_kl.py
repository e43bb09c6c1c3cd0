from functools import partial

import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.decoupled_kl import decoupled_kl
from vifast.testing import LAYOUTS, assert_close_to_oracle, check_op, check_values, with_layout

OPTIONS = (0.7, 8.0, 4.0)


def batch(n, k, *, near=None, scale=1.0, dtype=torch.float32, device="cpu"):
    """Student, teacher and labels; ``near`` is how far the student is from the teacher."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = scale * torch.randn(2, n, k, generator=generator, dtype=torch.float64)
    student = student if near is None else teacher + near * student
    labels = torch.arange(n) * 7 % max(k, 1)
    return student.to(device, dtype).requires_grad_(), teacher.to(device, dtype), labels.to(device)


def test_done_by_hand(backend):
    """One row: own classes 1/2 and 1/4, of the others 1/3 to 2/3 and 3/4 to 1/4."""
    teacher = torch.tensor([[1.0, 2.0, 3.0]], device=backend.device).log()
    student = torch.tensor([[3.0, 1.0, 12.0]], device=backend.device).log()
    p, q, r_t, r_s = (torch.tensor(x) for x in ((1 / 2, 1 / 2), (3 / 4, 1 / 4), (1 / 3, 2 / 3), (3 / 4, 1 / 4)))
    wanted = 2 * (p * (p / q).log()).sum() + 5 * (r_t * (r_t / r_s).log()).sum()
    ours = F.decoupled_kl(student, teacher, torch.tensor([2], device=backend.device), alpha=2, beta=5, temperature=1)
    assert_close(ours.cpu(), wanted)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_op(reduction):
    check_op(decoupled_kl, lambda n: (*batch(n, 11), *OPTIONS, reduction, True), length=11, outputs=1)


@pytest.mark.parametrize(("n", "k"), [(1, 2), (5, 3), (60, 395), (3, 2049)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_values_on_every_back_end(backend, n, k, scale):
    for reduction in ("mean", "none"):
        args = *batch(n, k, scale=scale, device=backend.device), *OPTIONS, reduction, True
        check_values(decoupled_kl, args, length=k, outputs=1)


def test_more_rows_than_one_launch_adds_up(backend):
    check_values(decoupled_kl, (*batch(130, 3, device=backend.device), *OPTIONS, "mean", True), length=130, outputs=1)


@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-5])
def test_agreeing_rows_keep_their_digits(backend, gap):
    student, teacher, labels = batch(8, 395, near=gap, scale=3.0, device=backend.device)
    rows, slope = decoupled_kl(student.detach(), teacher, labels, *OPTIONS, "none", True)
    wide = student.detach().double(), teacher.double(), labels
    oracle, oracle_slope = decoupled_kl.definition(*wide, *OPTIONS, "none", True)
    assert_close(rows.double(), oracle, rtol=1e-4, atol=1e-12)
    assert_close(slope.double(), oracle_slope, rtol=1e-4, atol=1e-4 * oracle_slope.abs().max().item())


def test_equal_rows_are_exactly_zero(backend):
    student, *others = batch(5, 33, scale=5.0, device=backend.device, near=0.0)
    loss = F.decoupled_kl(student, *others)
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


@pytest.mark.parametrize("gap", [50.0, 1e3, 1e5])
@pytest.mark.parametrize("own", ["student", "teacher"])
def test_certain_rows(backend, gap, own):
    """One side is certain of the own class, the other of another."""
    far = gap * torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]], device=backend.device)
    student, teacher = far if own == "student" else far.flip(0)
    args = student[None].requires_grad_(), teacher[None], torch.zeros_like(student[:1]).long()
    check_values(decoupled_kl, (*args, *OPTIONS, "none", True), length=3, outputs=1)


def test_rows_of_no_class(backend):
    student, teacher, labels = batch(6, 9, device=backend.device)
    labels[1], labels[4] = -1, 2**40
    with torch.no_grad():
        teacher[1, 3] = torch.nan
    rows = F.decoupled_kl(student, teacher, labels, reduction="none")
    (grad,) = torch.autograd.grad(rows.sum(), student)
    assert (rows == 0).tolist() == (grad == 0).all(1).tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 3])
@pytest.mark.parametrize("side", [0, 1])
def test_a_bad_row_stays_in_its_row(backend, bad, column, side):
    student, teacher, labels = batch(6, 40, device=backend.device)
    labels.fill_(3)
    with torch.no_grad():
        (student, teacher)[side][2, column] = bad
    rows = F.decoupled_kl(student, teacher, labels, reduction="none")
    assert rows.isfinite().tolist() == [True, True, False, True, True, True]
    (grad,) = torch.autograd.grad(rows.sum(), student)
    assert grad[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize(("n", "k"), [(0, 5), (4, 0), (4, 1)])
def test_nothing_to_compare(backend, n, k):
    student, teacher, _ = batch(n, k, device=backend.device)
    loss = F.decoupled_kl(student, teacher, torch.zeros(n, dtype=torch.int64, device=backend.device))
    loss.backward()
    assert loss == 0
    assert student.grad.shape == (n, k)
    assert not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_types_and_strides(backend, dtype, layout):
    student, teacher, labels = batch(24, 19, dtype=dtype, device=backend.device)
    student, teacher = (with_layout(x.detach(), layout) for x in (student, teacher))
    ours = F.decoupled_kl(student.requires_grad_(), teacher, labels.int())
    wide = student.detach().double().requires_grad_()
    oracle = F.decoupled_kl(wide, teacher.double(), labels)
    assert_close_to_oracle(ours, oracle, length=19)
    (grad,), (oracle_grad,) = torch.autograd.grad(ours, student), torch.autograd.grad(oracle, wide)
    assert grad.dtype == dtype
    assert_close_to_oracle(grad, oracle_grad, length=19)


def test_no_slope_is_written_where_none_is_wanted(backend):
    student, teacher, labels = batch(6, 9, device=backend.device)
    with_slope, without = (decoupled_kl(student.detach(), teacher, labels, *OPTIONS, "mean", s) for s in (True, False))
    assert torch.equal(with_slope[0], without[0])
    assert without[1].numel() == 0
    assert not F.decoupled_kl(student.detach(), teacher.requires_grad_(), labels).requires_grad


def test_bits_do_not_depend_on_threads(with_threads):
    args = batch(300, 700)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        loss = F.decoupled_kl(*args)
        results.append((loss, *torch.autograd.grad(loss, args[0])))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_every_instruction_set(isa):
    check_values(decoupled_kl, (*batch(60, 67), *OPTIONS, "mean", True), length=67, outputs=1)


def test_gradcheck():
    student, teacher, labels = batch(6, 5, dtype=torch.float64)
    labels[2] = 5
    assert torch.autograd.gradcheck(partial(F.decoupled_kl, teacher=teacher, labels=labels), student)


def test_shapes_are_checked():
    student, teacher, labels = batch(4, 3)
    with pytest.raises(ValueError, match=r"^decoupled_kl: expected \[N, K\] twice and \[N\]"):
        decoupled_kl(student, teacher, labels[:2], *OPTIONS, "mean", True)
