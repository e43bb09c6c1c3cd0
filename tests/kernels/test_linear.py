"""linear: logits of rows, with the same bits for any number of threads."""

import pytest
import torch
from torch.testing import assert_close

from vifast.kernels.linear import linear
from vifast.testing import check_op, check_values


def rows(n, d, k, **options):
    x, weight = torch.randn(n, d, **options), torch.randn(k, d, **options)
    return x.requires_grad_(), weight.requires_grad_()


def test_by_hand():
    x, weight = (
        torch.tensor([[1.0, 2.0]], requires_grad=True),
        torch.tensor([[3.0, 4.0], [5.0, 6.0]], requires_grad=True),
    )
    out = linear(x, weight)
    assert torch.equal(out, torch.tensor([[11.0, 17.0]]))
    out.backward(torch.tensor([[1.0, 10.0]]))
    assert torch.equal(x.grad, torch.tensor([[53.0, 64.0]]))
    assert torch.equal(weight.grad, torch.tensor([[1.0, 2.0], [10.0, 20.0]]))


def test_op():
    check_op(linear, lambda n: rows(n, 13, 5), length=13, outputs=1)


@pytest.mark.parametrize(("n", "d", "k"), [(120, 2048, 395), (3, 700, 1), (0, 4, 2), (2, 5, 0), (1, 1, 1)])
def test_values(n, d, k):
    check_values(linear, rows(n, d, k), length=max(n, d, k), outputs=1)


def test_a_gradient_that_nobody_asks_for_is_not_made():
    x, weight = rows(4, 6, 3)
    both = torch.autograd.grad(linear(x, weight).square().sum(), (x, weight))
    for wanted, args in ((both[0], (x, weight.detach())), (both[1], (x.detach(), weight))):
        leaf = next(arg for arg in args if arg.requires_grad)
        (grad,) = torch.autograd.grad(linear(*args).square().sum(), leaf)
        assert torch.equal(grad, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    args = rows(4, 6, 3, dtype=dtype)
    out = linear(*args)
    assert out.dtype == torch.promote_types(dtype, torch.float32)
    assert [grad.dtype for grad in torch.autograd.grad(out.sum(), args)] == [dtype, dtype]


def test_strides():
    x, weight = rows(9, 16, 7)
    assert_close(linear(x[:, ::2], weight[:, 1::2]), x[:, ::2] @ weight[:, 1::2].T)
    (grad,) = torch.autograd.grad(linear(x[:, ::2], weight[:, 1::2]).sum(), x)
    assert_close(grad[:, ::2], weight[:, 1::2].sum(0).expand(9, 8))


def test_bits_do_not_depend_on_threads(with_threads):
    args = rows(120, 1030, 395)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        out = linear(*args)
        results.append((out, *torch.autograd.grad(out.square().sum(), args)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(Exception, match=r"linear: expected \[N, D\] and \[K, D\], got \[2, 3\] and \[4, 5\]"):
        linear(torch.zeros(2, 3), torch.zeros(4, 5))
