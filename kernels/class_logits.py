r"""class_logits: rows of two modalities against the class prototypes of their own, a_ij = <f_i, c_j> / temperature.

Shapes    student, teacher [N, D]: ``first`` rows of the first modality, then those of the second; prototypes_v,
          prototypes_i [K, D]. Two results [N, K], float32 (float64 for float64 features).
Gradient  to the student's rows only.
Edges     no rows, no classes: an empty result. The CPU's bits do not depend on the number of threads.
Memory    results and, of half types, a float32 copy of the inputs.
Floor     one product of 2*N x D x K forward, one of N x K x D backward.
Measured  with the rest of DAKDLoss 1.3 of the platform's products for 32 + 32 rows, 395 classes, on two cores of an AMD
          EPYC, forward and backward.
Source    spec dakd 5.3, H2.
"""

import torch
from torch import Tensor

from vifast.kernels._cpu import float_rows, product
from vifast.kernels._registry import Op, check


def class_logits_ref(
    student: Tensor, teacher: Tensor, prototypes_v: Tensor, prototypes_i: Tensor, first: int, temperature: float
) -> tuple[Tensor, Tensor]:
    acc = torch.promote_types(student.dtype, torch.float32)
    to_v, to_i = prototypes_v.to(acc).T, prototypes_i.to(acc).T
    student, teacher = (torch.cat((x[:first] @ to_v, x[first:] @ to_i)) for x in (student.to(acc), teacher.to(acc)))
    return student / temperature, teacher / temperature


class_logits = Op("class_logits", class_logits_ref)


@class_logits.register_fake
def _alloc(student, teacher, prototypes_v, prototypes_i, first, temperature):
    fits = student.dim() == 2 and student.shape == teacher.shape and prototypes_v.shape == prototypes_i.shape
    fits = fits and prototypes_v.dim() == 2 and prototypes_v.size(1) == student.size(1)
    shapes = [list(x.shape) for x in (student, teacher, prototypes_v, prototypes_i)]
    check(fits, lambda: "class_logits: expected two [N, D] and two [K, D], got {}, {}, {} and {}".format(*shapes))
    shape, acc = (student.size(0), prototypes_v.size(0)), torch.promote_types(student.dtype, torch.float32)
    return student.new_empty(shape, dtype=acc), student.new_empty(shape, dtype=acc)


@class_logits.register_kernel("cpu")
def _cpu(student, teacher, prototypes_v, prototypes_i, first, temperature):
    out = _alloc(student, teacher, prototypes_v, prototypes_i, first, temperature)
    to_v, to_i = float_rows(prototypes_v), float_rows(prototypes_i)
    for x, logits in zip((student, teacher), out, strict=True):
        _both(float_rows(x), to_v, to_i, first, temperature, logits)
    return out


@class_logits.register_kernel("cuda")
def _cuda(student, teacher, prototypes_v, prototypes_i, first, temperature):
    out = _alloc(student, teacher, prototypes_v, prototypes_i, first, temperature)
    for x, logits in zip((student, teacher), out, strict=True):
        _scaled_products(x, prototypes_v.T, prototypes_i.T, first, temperature, logits)
    return out


def _scaled_products(x, to_v, to_i, first, temperature, out):
    """A launch a modality. With ``out`` autocast leaves the products as they are."""
    for rows, to in ((slice(first), to_v), (slice(first, None), to_i)):
        part = out[rows]
        torch.addmm(part, x[rows].to(out.dtype), to.to(out.dtype), beta=0, alpha=1 / temperature, out=part)
    return out


def _both(x, to_v, to_i, first, temperature, out):
    for rows, to in ((slice(first), to_v), (slice(first, None), to_i)):
        product(x[rows], to, out[rows])
    return out.div_(temperature)


def _backward_ref(grad: Tensor, prototypes_v: Tensor, prototypes_i: Tensor, first: int, temperature: float) -> Tensor:
    to_v, to_i = prototypes_v.to(grad.dtype), prototypes_i.to(grad.dtype)
    return torch.cat((grad[:first] @ to_v, grad[first:] @ to_i)) / temperature


class_logits_backward = Op("class_logits_backward", _backward_ref)


@class_logits_backward.register_fake
def _alloc_backward(grad, prototypes_v, prototypes_i, first, temperature):
    return grad.new_empty(grad.size(0), prototypes_v.size(1))


@class_logits_backward.register_kernel("cpu")
def _cpu_backward(grad, prototypes_v, prototypes_i, first, temperature):
    out = _alloc_backward(grad, prototypes_v, prototypes_i, first, temperature)
    to_v, to_i = float_rows(prototypes_v).T, float_rows(prototypes_i).T
    return _both(grad.contiguous(), to_v, to_i, first, temperature, out)


@class_logits_backward.register_kernel("cuda")
def _cuda_backward(grad, prototypes_v, prototypes_i, first, temperature):
    out = _alloc_backward(grad, prototypes_v, prototypes_i, first, temperature)
    return _scaled_products(grad, prototypes_v, prototypes_i, first, temperature, out)


def _setup(ctx, inputs, output):
    student, _, prototypes_v, prototypes_i, ctx.first, ctx.temperature = inputs
    ctx.dtype = student.dtype
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(prototypes_v, prototypes_i)


def _backward(ctx, grad, _):
    if grad is None:
        return (None,) * 6
    return class_logits_backward(grad, *ctx.saved_tensors, ctx.first, ctx.temperature).to(ctx.dtype), *(None,) * 5


class_logits.register_autograd(_backward, _setup)
