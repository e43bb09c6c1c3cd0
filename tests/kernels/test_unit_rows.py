import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from vifast.kernels import _C
from vifast.kernels.unit_rows import unit_pair, unit_rows, unit_rows_backward
from vifast.testing import LAYOUTS, assert_close_to_oracle, check_op, check_values, with_layout


def rows(n, d, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(device, dtype)


def test_done_by_hand(backend):
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]], device=backend.device, requires_grad=True)
    unit = unit_rows(x)
    assert_close(unit.cpu(), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]))
    (grad,) = torch.autograd.grad(unit[:, 0].sum(), x)
    assert_close(grad.cpu()[[0, 2]], torch.tensor([[0.64 / 5, -0.48 / 5], [0.5, 0.0]]))


@pytest.mark.parametrize(("n", "d"), [(0, 3), (3, 0), (1, 2), (5, 70), (9, 2049)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_values_on_every_back_end(backend, n, d, scale):
    x = (scale * rows(n, d, device=backend.device)).requires_grad_()
    check_values(unit_rows, (x,), length=max(d, 1), outputs=1)
    oracle = normalize(x.detach().cpu().double(), eps=1e-12)
    assert_close_to_oracle(unit_rows(x), oracle, length=max(d, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_types_and_strides(backend, dtype, layout):
    x = with_layout(rows(7, 33, dtype, backend.device), layout).requires_grad_()
    check_values(unit_rows, (x,), length=33, outputs=1)
    assert unit_rows(x).dtype == torch.float32


def test_a_bad_row_stays_in_its_row(backend):
    x = rows(4, 5, device=backend.device)
    x[1, 2], x[2, 0] = torch.nan, torch.inf
    x.requires_grad_()
    unit = unit_rows(x)
    assert unit.isfinite().all(1).tolist() == [True, False, False, True]
    assert torch.autograd.grad(unit.sum(), x)[0][[0, 3]].isfinite().all()


def test_op():
    check_op(unit_rows, lambda n: (rows(n, 11).requires_grad_(),), length=11, outputs=1)
    torch.library.opcheck(unit_rows_backward.overload, (rows(4, 6), rows(4, 6, seed=1)))


@pytest.mark.parametrize(("n", "m"), [(3, 5), (4, 0), (0, 2)])
def test_two_sets_at_once(backend, n, m):
    sides = [rows(k, 70, device=backend.device, seed=k).requires_grad_() for k in (n, m)]
    check_values(unit_pair, tuple(sides), length=70, outputs=2)
    for side, unit in zip(sides, unit_pair(*sides), strict=True):
        (one,), (alone,) = (
            torch.autograd.grad(u[:, 0].sum(), side, retain_graph=True) for u in (unit, unit_rows(side))
        )
        assert torch.equal(one, alone)


def test_op_of_two_sets():
    check_op(unit_pair, lambda n: (rows(n, 11).requires_grad_(), rows(4, 11).requires_grad_()), length=11, outputs=2)


def test_gradcheck():
    assert torch.autograd.gradcheck(unit_rows, rows(5, 4, torch.float64).requires_grad_())


def test_the_gradient_may_be_written_over_the_one_that_came():
    grad, x = rows(6, 40), rows(6, 40, seed=1)
    wanted = unit_rows_backward(grad, x)
    _C.unit_backward(grad, x, grad, 2)
    assert torch.equal(grad, wanted)
    with pytest.raises(ValueError, match=r"grad: expected shape \[6, 40\], got \[6, 39\]"):
        _C.unit_backward(grad[:, :39].contiguous(), x, wanted, 1)


def test_every_instruction_set(isa):
    check_values(unit_rows, (rows(9, 67).requires_grad_(),), length=67, outputs=1)


def test_bits_do_not_depend_on_threads(with_threads):
    x, grad, results = rows(300, 700), rows(300, 700, seed=1), []
    for threads in (1, 2):
        with_threads(threads)
        results.append((unit_rows(x), unit_rows_backward(grad, x)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"^unit_rows: expected rows \[N, D\], got \[4\]$"):
        unit_rows(torch.zeros(4))
    with pytest.raises(ValueError, match=r"^unit_pair: expected \[N, D\] and \[M, D\], got \[4, 2\] and \[4, 3\]$"):
        unit_pair(torch.zeros(4, 2), torch.zeros(4, 3))
