import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels._registry import forced
from vifast.kernels.prototype_alignment import _relation, prototype_alignment, prototype_alignment_backward
from vifast.testing import LAYOUTS, assert_close_to_oracle, check_op, check_values, to_float64, with_layout


def waves(rows, cols, row_step, col_step, phase):
    i, j = torch.arange(rows, dtype=torch.float64), torch.arange(cols, dtype=torch.float64)
    return torch.sin(row_step * i.unsqueeze(1) + col_step * j + phase)


# Spec ckda 14, vector 1: student, teacher and prototypes of both modalities.
STUDENT = {"v": waves(4, 6, 0.7, 0.3, 0.1), "i": waves(4, 6, 0.5, 0.9, 0.2)}
TEACHER = {"v": waves(4, 6, 0.7, 0.3, 0.4), "i": waves(4, 6, 0.5, 0.9, 0.6)}
PROTOTYPES = {"v": waves(5, 6, 1.1, 0.4, 0.0), "i": waves(5, 6, 1.3, 0.8, 0.5)}
VECTORS = {
    0.1: {"vv": 9.775940170e-5, "ii": 8.724036423e-4, "vi": 2.083098642e-4, "iv": 3.832755278e-4},
    10.0: {"vv": 0.2647011508, "ii": 2.204040357, "vi": 0.2803505570, "iv": 0.5248895050},
}


def plain(student, teacher, prototypes, tau, kappa):
    """Spec ckda 5.2 to 5.4 as written, for autograd to differentiate."""

    def affinity(feat):
        relation = normalize((normalize(feat) @ normalize(prototypes).T / tau).softmax(1))
        return (kappa * relation @ relation.T).log_softmax(1)

    new, old = affinity(student), affinity(teacher)
    return (old.exp() * (old - new)).sum(1).mean()


def problem(n, k, d, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(n + k + d)
    student, teacher, prototypes = (torch.randn(rows, d, generator=generator) for rows in (n, n, k))
    return tuple(x.to(device, dtype) for x in (student, student + 0.5 * teacher, prototypes))


@pytest.mark.parametrize("kappa", VECTORS)
@pytest.mark.parametrize("which", ["vv", "ii", "vi", "iv"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_spec_vectors(backend, kappa, which, dtype):
    own, other = which
    rows = (x.to(backend.device, dtype) for x in (STUDENT[own], TEACHER[own], PROTOTYPES[other]))
    loss = F.prototype_alignment(*rows, kappa=kappa).item()
    bounds = {"rtol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-5}
    assert_close(loss, VECTORS[kappa][which], atol=0, **bounds)


def test_spec_gradient():
    student = STUDENT["v"].clone().requires_grad_()
    F.prototype_alignment(student, TEACHER["v"], PROTOTYPES["v"]).backward()
    wanted = torch.tensor([0.01584419, 0.01268594, 0.00768594, 0.00173897, -0.00413448, -0.00895663])
    assert_close(student.grad[0], wanted.double(), rtol=0, atol=5e-9)


def test_spec_relation():
    wanted = [0.968223374, 0.0317761048, 3.19159410e-7, 2.38890433e-9, 1.99774236e-7]
    assert_close(_relation(STUDENT["v"], PROTOTYPES["v"], 0.1)[0].tolist(), wanted, rtol=2e-9, atol=0)


@pytest.mark.parametrize("kappa", [0.1, 1.0, 10.0])
def test_closed_form_is_autograd_of_the_formula(kappa):
    student, teacher, prototypes = problem(9, 12, 7, dtype=torch.float64)
    student.requires_grad_()
    ours = prototype_alignment(student, teacher, prototypes, 0.1, kappa, True)[0]
    wanted = plain(student, teacher, prototypes, 0.1, kappa)
    assert_close(ours, wanted, rtol=1e-9, atol=1e-15)
    grads = (torch.autograd.grad(3 * loss, student)[0] for loss in (ours, wanted))
    assert_close(*grads, rtol=1e-8, atol=1e-14)


def test_op():
    def make_args(n):
        student, teacher, prototypes = problem(n, 5, 7)
        return student.requires_grad_(), teacher, prototypes, 0.1, 10.0, True

    check_op(prototype_alignment, make_args, length=9, outputs=1)


@pytest.mark.parametrize("kappa", [0.1, 10.0])
@pytest.mark.parametrize(("n", "k", "d"), [(2, 1, 1), (32, 20, 48), (37, 3, 70), (100, 70, 9), (300, 40, 17)])
def test_values_on_every_back_end(backend, n, k, d, kappa):
    if backend.name == "triton" and n > 128:
        pytest.skip("slow in the interpreter")
    student, teacher, prototypes = problem(n, k, d, backend.device)
    check_values(
        prototype_alignment,
        (student.requires_grad_(), teacher, prototypes, 0.1, kappa, True),
        length=max(n, k, d),
        outputs=1,
    )


@pytest.mark.triton
def test_definition_of_a_slope_left_to_the_backward(monkeypatch):
    student, teacher, prototypes = problem(37, 9, 6)
    options = 0.1, 0.1
    args = student, teacher, prototypes, *options, True
    with forced("cuda"):
        kernels = prototype_alignment.run(*args)
    monkeypatch.setattr("vifast.kernels.prototype_alignment._keeps_graphs", lambda *_: True)
    definition = prototype_alignment.definition(*args)
    assert [x.shape for x in kernels] == [x.shape for x in definition]
    grads = []
    for _, *state in (kernels, definition):
        backward = torch.tensor(2.0), *state, student, prototypes, *options
        with forced("cuda"):
            grads.append(prototype_alignment_backward.run(*backward))
        assert_close_to_oracle(grads[-1], prototype_alignment_backward.definition(*to_float64(backward)), length=37)
    assert_close_to_oracle(*grads, length=37)


@pytest.mark.parametrize(("n", "k"), [(0, 3), (1, 3), (4, 0), (0, 0), (40, 0)])
def test_empty_problems(backend, n, k):
    student, teacher, prototypes = problem(n, k, 5, backend.device)
    student.requires_grad_()
    loss = F.prototype_alignment(student, teacher, prototypes)
    loss.backward()
    assert_close(loss.item(), 0.0, rtol=0, atol=1e-7)
    assert student.grad.shape == student.shape
    assert (student.grad.abs() < 1e-6).all()


def test_zero_rows_are_finite(backend):
    student, teacher, prototypes = problem(6, 4, 5, backend.device)
    student[2], teacher[3], prototypes[1] = 0, 0, 0
    student.requires_grad_()
    loss = F.prototype_alignment(student, teacher, prototypes)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_teacher_and_prototypes_are_constant(backend):
    student, teacher, prototypes = (x.requires_grad_() for x in problem(6, 4, 5, backend.device))
    F.prototype_alignment(student, teacher, prototypes).backward()
    assert teacher.grad is None
    assert prototypes.grad is None
    assert not F.prototype_alignment(student.detach(), teacher.detach(), prototypes.detach()).requires_grad


def test_the_teacher_itself_costs_nothing_and_kappa_bounds_the_loss(backend):
    student, teacher, prototypes = problem(8, 6, 5, backend.device)
    assert F.prototype_alignment(teacher, teacher, prototypes).abs() < 1e-7
    for kappa in (0.1, 1.0):
        assert 0 <= F.prototype_alignment(student, teacher, prototypes, kappa=kappa) <= (2 * kappa) ** 2 / 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_types_and_strides(backend, dtype, layout):
    rows = tuple(with_layout(x, layout) for x in problem(12, 9, 19, backend.device, dtype))
    wide = tuple(x.double() for x in rows)
    for student in (rows[0], wide[0]):
        student.requires_grad_()
    ours, oracle = F.prototype_alignment(*rows), F.prototype_alignment(*wide)
    assert_close_to_oracle(ours, oracle, length=19)
    (grad,), (wanted,) = torch.autograd.grad(ours, rows[0]), torch.autograd.grad(oracle, wide[0])
    assert grad.dtype == dtype
    assert_close_to_oracle(grad, wanted, length=19)


def test_every_instruction_set(isa):
    student, teacher, prototypes = problem(130, 67, 41)
    check_values(
        prototype_alignment, (student.requires_grad_(), teacher, prototypes, 0.1, 10.0, True), length=130, outputs=1
    )


def test_autocast_changes_nothing():
    rows = problem(24, 9, 16)
    rows[0].requires_grad_()
    plain = F.prototype_alignment(*rows)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = F.prototype_alignment(*rows)
        (mixed_grad,) = torch.autograd.grad(mixed, rows[0])
    assert torch.equal(plain, mixed)
    assert torch.equal(torch.autograd.grad(plain, rows[0])[0], mixed_grad)


@pytest.mark.parametrize(("n", "k"), [(32, 395), (300, 700)])
def test_bits_do_not_depend_on_threads(with_threads, n, k):
    student, teacher, prototypes = problem(n, k, 768)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        rows = student.clone().requires_grad_()
        loss = F.prototype_alignment(rows, teacher, prototypes)
        loss.backward()
        results.append((loss.detach(), rows.grad))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
