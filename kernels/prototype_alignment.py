r"""prototype_alignment: do the samples of a batch relate to each other, seen through prototypes, as a teacher's do?

    R(F) = softmax_rows(cos(F, P) / tau)     W(F) = R / |R|     A(F) = softmax_rows(kappa W W^T), the diagonal included
    loss_i = KL(A(teacher)_i || A(student)_i); the teacher is constant

Shapes   student, teacher [N, D], prototypes [K, D], one dtype and device. Out: loss [N] float32 (float64 for float64),
         and for the backward W of both [N, K] and what graph_alignment saved.
Defined  norms of rows are at least 1e-12, so a zero row has cosine 0. Without prototypes the loss is 0.
Backward from dW of graph_alignment: dZ = W (dW - <dW, W> W), dU = dZ P^ / tau, dF = (dU - <dU, U> U) / |F|. That is
         ckda 5.5, whose dR = (dW - <dW, W> W) / |R| is orthogonal to R = |R| W: <dR, R> = 0, and |R| cancels.
Exact    A is graph_alignment's softmax of -kappa/2 ||w_i - w_j||^2: with the published kappa of 0.1 the loss is 1e-5
         and smaller, and logits taken from products would leave few digits of it.
Memory   two N x K arrays, packed rows, the gradient; no N x N beyond what graph_alignment keeps.
Floor    2 products N x K x D forward and 1 backward; 2 and 2 of N x N x K.
Source   specs ckda 5.2 to 5.5.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows, product
from vifast.kernels._registry import Op, check
from vifast.kernels.graph_alignment import (
    alloc,
    graph_alignment,
    graph_alignment_backward,
    graph_alignment_ref,
)

LEAST_NORM = 1e-12


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=LEAST_NORM)


def _relation(feat: Tensor, prototypes: Tensor, tau: float) -> Tensor:
    return torch.softmax(_unit(feat) @ _unit(prototypes).T / tau, 1)


def _graph_options(kappa: float) -> tuple:
    return -0.5 * kappa, 0.0, True, False, "exact"


def prototype_alignment_ref(
    student: Tensor, teacher: Tensor, prototypes: Tensor, tau: float, kappa: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    acc = torch.promote_types(student.dtype, torch.float32)
    with torch.no_grad():
        w_teacher = _unit(_relation(teacher.to(acc), prototypes.detach().to(acc), tau))
    w_student = _unit(_relation(student.to(acc), prototypes.detach().to(acc), tau))
    loss, *state = graph_alignment_ref(w_student, w_teacher, *_graph_options(kappa))
    return loss, w_student.detach().clone(), w_teacher, *state


prototype_alignment = Op("prototype_alignment", prototype_alignment_ref)


@prototype_alignment.register_fake
def _alloc(student, teacher, prototypes, tau, kappa):
    fits = student.dim() == 2 and student.shape == teacher.shape and student.shape[1:] == prototypes.shape[1:]
    check(
        fits,
        lambda: (
            "prototype_alignment: expected [N, D], [N, D], [K, D], got "
            f"{list(student.shape)}, {list(teacher.shape)}, {list(prototypes.shape)}"
        ),
    )
    w_student, w_teacher = _alloc_relations(student, prototypes)
    loss, *state = alloc(w_student, w_teacher, *_graph_options(kappa))
    return loss, w_student, w_teacher, *state


def _alloc_relations(student, prototypes):
    acc = torch.promote_types(student.dtype, torch.float32)
    return tuple(student.new_empty(student.size(0), prototypes.size(0), dtype=acc) for _ in range(2))


@prototype_alignment.register_kernel("cpu")
def _cpu(student, teacher, prototypes, tau, kappa):
    relations = _alloc_relations(student, prototypes)
    rows = (float_rows(x) for x in (student, teacher, prototypes))
    _C.prototype_relations(*rows, tau, *relations, torch.get_num_threads())
    loss, *state = graph_alignment.run(*relations, *_graph_options(kappa))
    return loss, *relations, *state


@prototype_alignment.register_kernel("cuda")
def _cuda(student, teacher, prototypes, tau, kappa):
    relations = tuple(_unit(_relation(x.float(), prototypes.float(), tau)) for x in (student, teacher))
    loss, *state = graph_alignment.run(*relations, *_graph_options(kappa))
    return loss, *relations, *state


def _backward_ref(
    grad: Tensor,
    w_student: Tensor,
    w_teacher: Tensor,
    saved: Tensor,
    dist_s: Tensor,
    dist_t: Tensor,
    student: Tensor,
    prototypes: Tensor,
    tau: float,
    kappa: float,
) -> Tensor:
    graph = grad, saved, dist_s, dist_t, w_student, w_teacher, *_graph_options(kappa), True, False
    dw, _ = graph_alignment_backward.definition(*graph)
    return _through_prototypes(dw, w_student, student, prototypes, tau)


def _through_prototypes(dw, w_student, student, prototypes, tau):
    dz = w_student * _across(dw, w_student)
    x = student.to(dw.dtype)
    du = dz @ _unit(prototypes.to(dw.dtype)) / tau
    return (_across(du, _unit(x)) / x.norm(dim=1, keepdim=True).clamp(min=LEAST_NORM)).to(student.dtype)


def _across(grad: Tensor, unit: Tensor) -> Tensor:
    """What of each row of grad is orthogonal to the unit row: the gradient of a normalisation, before its 1 / norm."""
    return grad - (grad * unit).sum(1, keepdim=True) * unit


prototype_alignment_backward = Op("prototype_alignment_backward", _backward_ref)


@prototype_alignment_backward.register_fake
def _alloc_backward(grad, w_student, w_teacher, saved, dist_s, dist_t, student, prototypes, tau, kappa):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


@prototype_alignment_backward.register_kernel("cpu")
def _cpu_backward(grad, w_student, w_teacher, saved, dist_s, dist_t, student, prototypes, tau, kappa):
    x, p, threads = float_rows(student), float_rows(prototypes), torch.get_num_threads()
    graph = grad, saved, dist_s, dist_t, w_student, w_teacher, *_graph_options(kappa), True, False
    step, _ = graph_alignment_backward.run(*graph)
    _C.prototype_backward(step, w_student, p, tau, threads)
    out = product(step, p.T, torch.empty_like(x))
    _C.unit_backward(out, x, threads)
    return out.to(student.dtype)


@prototype_alignment_backward.register_kernel("cuda")
def _cuda_backward(grad, w_student, w_teacher, saved, dist_s, dist_t, student, prototypes, tau, kappa):
    graph = grad, saved, dist_s, dist_t, w_student, w_teacher, *_graph_options(kappa), True, False
    dw, _ = graph_alignment_backward.run(*graph)
    return _through_prototypes(dw, w_student, student, prototypes, tau)


def _setup(ctx, inputs, output):
    student, _, prototypes, ctx.tau, ctx.kappa = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], student, prototypes)


def _backward(ctx, grad, *_):
    if grad is None or not ctx.needs_input_grad[-5]:
        return (None,) * 5
    grad_student = prototype_alignment_backward(grad, *ctx.saved_tensors, ctx.tau, ctx.kappa)
    return grad_student, None, None, None, None


prototype_alignment.register_autograd(_backward, _setup)
