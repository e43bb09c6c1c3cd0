import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from vifast import functional as F
from vifast.testing import LAYOUTS, assert_close_to_oracle, with_layout


def batch(n, d, e, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(n)
    return tuple(torch.randn(n, width, generator=generator).to(device, dtype) for width in (d, e))


def off_diagonal(feat, temperature):
    unit = normalize(feat)
    off = ~torch.eye(len(feat), dtype=torch.bool)
    return (unit @ unit.T / temperature)[off].view(len(feat), -1).log_softmax(1)


def plain(student, teacher, temperature, keep):
    """Spec dakd 11, relation KL, as written, for autograd to differentiate."""
    p, q = off_diagonal(teacher, temperature), off_diagonal(student, temperature)
    return (keep * temperature**2 * (p.exp() * (p - q)).sum(1)).sum() / len(student)


def closed_form(student, teacher, temperature, keep):
    """Spec dakd 11: Gm_ik = keep_i temperature / N (q_ik - p_ik), (Gm + Gm^T) F^, then the gradient of the norm."""
    n = len(student)
    p, q = (torch.zeros(n, n, dtype=torch.float64) for _ in range(2))
    off = ~torch.eye(n, dtype=torch.bool)
    p[off], q[off] = (off_diagonal(x, temperature).exp().flatten() for x in (teacher, student))
    gm = keep.unsqueeze(1) * temperature / n * (q - p)
    unit, norm = normalize(student), student.norm(dim=1, keepdim=True)
    step = (gm + gm.T) @ unit
    return (step - (step * unit).sum(1, keepdim=True) * unit) / norm


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_formula_and_closed_form(temperature):
    student, teacher = batch(9, 6, 4, torch.float64)
    keep = torch.tensor([1, 0, 1, 1, 0.5, 1, 2, 0, 1], dtype=torch.float64)
    student.requires_grad_()
    ours = F.relation_alignment(student, teacher, temperature=temperature, keep=keep)
    wanted = plain(student, teacher, temperature, keep)
    assert_close(ours, wanted, rtol=1e-9, atol=0)
    (grad,), (plain_grad,) = torch.autograd.grad(ours, student), torch.autograd.grad(wanted, student)
    assert_close(grad, plain_grad, rtol=1e-9, atol=1e-14)
    assert_close(grad, closed_form(student.detach(), teacher, temperature, keep), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("n", [2, 33, 300])
def test_values_on_every_back_end(backend, n):
    if backend.name == "triton" and n > 33:
        pytest.skip("slow in the interpreter")
    student, teacher = batch(n, 24, 40, device=backend.device)
    student.requires_grad_()
    wide = student.detach().double().cpu().requires_grad_()
    keep = torch.ones(n, dtype=torch.float64)
    ours, oracle = F.relation_alignment(student, teacher), plain(wide, teacher.double().cpu(), 0.1, keep)
    assert_close_to_oracle(ours, oracle, length=n)
    (grad,), (wanted,) = torch.autograd.grad(ours, student), torch.autograd.grad(oracle, wide)
    assert_close_to_oracle(grad, wanted, length=n)


def test_keep_multiplies_rows_and_the_mean_divides_by_all(backend):
    student, teacher = batch(8, 5, 5, device=backend.device)
    keep = torch.tensor([True, False] * 4, device=backend.device)
    some, rest = (F.relation_alignment(student, teacher, keep=k) for k in (keep, ~keep))
    assert_close(some + rest, F.relation_alignment(student, teacher))
    assert F.relation_alignment(student, teacher, keep=torch.zeros_like(keep)) == 0


def test_the_teacher_is_constant_and_equals_cost_nothing(backend):
    student, teacher = (x.requires_grad_() for x in batch(8, 5, 5, device=backend.device))
    F.relation_alignment(student, teacher).backward()
    assert teacher.grad is None
    assert F.relation_alignment(3 * teacher, teacher).abs() < 1e-6  # cosines know no length


@pytest.mark.parametrize("n", [0, 1])
def test_no_pair(backend, n):
    student, teacher = batch(n, 5, 5, device=backend.device)
    student.requires_grad_()
    loss = F.relation_alignment(student, teacher)
    loss.backward()
    assert loss == 0
    assert (student.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_types_and_strides(backend, dtype, layout):
    student, teacher = (with_layout(x, layout) for x in batch(12, 19, 19, dtype, backend.device))
    wide = student.double().requires_grad_()
    student.requires_grad_()
    ours, oracle = F.relation_alignment(student, teacher), F.relation_alignment(wide, teacher.double())
    assert_close_to_oracle(ours, oracle, length=19)
    (grad,), (wanted,) = torch.autograd.grad(ours, student), torch.autograd.grad(oracle, wide)
    assert grad.dtype == dtype
    assert_close_to_oracle(grad, wanted, length=19)


def test_one_graph():
    compiled = torch.compile(F.relation_alignment, backend="aot_eager", fullgraph=True)
    for n in (6, 9):
        student, teacher = batch(n, 5, 5)
        student.requires_grad_()
        grads = (torch.autograd.grad(f(student, teacher), student)[0] for f in (F.relation_alignment, compiled))
        assert_close(*grads)
