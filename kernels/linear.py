r"""linear: logits of rows, out = x W^T, in float32 and with the same bits for any number of threads.

Shapes    x [N, D], weight [K, D], one dtype and device; out [N, K] float32 (float64 for float64).
Backward  dx = g W, dW = g^T x; each only where it is asked for, [0, 0] otherwise.
Edges     no rows or no classes: empty, and zeros for the other's gradient.
Memory    the result and the gradients; of half types a float32 copy of the inputs.
Floor     one product of N x D x K forward, two backward.
Measured  with the rest of IDKLObjective 1.8 of the classifiers' products by the platform for 120 rows, 395 classes, on
          two cores of an AMD EPYC, forward and backward.
Source    spec idkl 2, the classifiers. On a GPU and in float64 the platform's product is the whole of it.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows, product
from vifast.kernels._registry import Op, check


def linear_ref(x: Tensor, weight: Tensor) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    return x.to(acc) @ weight.to(acc).T


linear = Op("linear", linear_ref)


@linear.register_fake
def _alloc(x: Tensor, weight: Tensor) -> Tensor:
    fits = x.dim() == weight.dim() == 2 and x.size(1) == weight.size(1)
    check(fits, lambda: f"linear: expected [N, D] and [K, D], got {list(x.shape)} and {list(weight.shape)}")
    return x.new_empty(x.size(0), weight.size(0), dtype=torch.promote_types(x.dtype, torch.float32))


@linear.register_kernel("cpu")
def _cpu(x: Tensor, weight: Tensor) -> Tensor:
    return product(float_rows(x), float_rows(weight), _alloc(x, weight))


def _backward_ref(grad: Tensor, x: Tensor, weight: Tensor, of_x: bool, of_weight: bool) -> tuple[Tensor, Tensor]:
    to_x = (grad @ weight.to(grad.dtype)).to(x.dtype) if of_x else x.new_empty(0, 0)
    return to_x, (grad.T @ x.to(grad.dtype)).to(weight.dtype) if of_weight else weight.new_empty(0, 0)


linear_backward = Op("linear_backward", _backward_ref)


@linear_backward.register_fake
def _alloc_backward(grad, x, weight, of_x, of_weight):
    sides = (x, of_x), (weight, of_weight)
    return tuple(t.new_empty(t.shape if wanted else (0, 0)) for t, wanted in sides)


@linear_backward.register_kernel("cpu")
def _cpu_backward(grad, x, weight, of_x, of_weight):
    grad, rows, classes = grad.contiguous(), float_rows(x), float_rows(weight)
    to_x, to_weight = _alloc_backward(grad, rows, classes, of_x, of_weight)
    threads = torch.get_num_threads()
    if of_x:
        _C.weighted_sums(grad, classes, to_x, False, threads)
    if of_weight:
        _C.weighted_sums(grad.T, rows, to_weight, False, threads)
    return to_x.to(x.dtype), to_weight.to(weight.dtype)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    if grad is None:
        return None, None
    wanted = ctx.needs_input_grad[-2:]
    grads = linear_backward(grad, *ctx.saved_tensors, *wanted)
    return tuple(value if asked else None for value, asked in zip(grads, wanted, strict=True))


linear.register_autograd(_backward, _setup)
