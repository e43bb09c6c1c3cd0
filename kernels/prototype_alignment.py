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
Measured 1.4 and 1.2 of the platform's products for 32 and 512 rows, 713 prototypes of 768 on two cores of an AMD EPYC,
         forward and backward.
Source   specs ckda 5.2 to 5.5.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows, product
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels._softmax import gpu_pair, row_launch
from vifast.kernels.graph_alignment import (
    alloc,
    graph_alignment,
    graph_alignment_backward,
    graph_alignment_ref,
)
from vifast.kernels.unit_rows import LEAST_NORM, row_norm, unit_rows_backward


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


@triton.jit
def _relation_kernel(
    student_ptr, teacher_ptr, lengths_ptr, w_student_ptr, w_teacher_ptr, n, n_cols, n_prototypes, tau,
    LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of products with the prototypes becomes W, in place: a unit row needs no sum of its exponentials."""
    row = tl.program_id(0).to(tl.int64)
    of_student = row < n
    row = tl.where(of_student, row, row - n)
    x_ptr = student_ptr if of_student else teacher_ptr
    w_ptr = (w_student_ptr if of_student else w_teacher_ptr) + row * n_prototypes
    inverse = 1.0 / (row_norm(x_ptr, row, n_cols, LEAST, BLOCK) * tau)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, n_prototypes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        u = _per_length(w_ptr, lengths_ptr, j, n_prototypes, LEAST)
        top = tl.where(u > top, u, top)
    highest = tl.max(top)
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_prototypes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        u = _per_length(w_ptr, lengths_ptr, j, n_prototypes, LEAST)
        e = tl.where(j < n_prototypes, tl.exp((u - highest) * inverse), 0.0)
        square += e * e
    scale = 1.0 / tl.sqrt(tl.sum(square))
    for start in range(0, n_prototypes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        u = _per_length(w_ptr, lengths_ptr, j, n_prototypes, LEAST)
        tl.store(w_ptr + j, tl.exp((u - highest) * inverse) * scale, mask=j < n_prototypes)


@triton.jit
def _per_length(w_ptr, lengths_ptr, j, n_prototypes, LEAST: tl.constexpr):
    dot = tl.load(w_ptr + j, mask=j < n_prototypes, other=float("-inf"))
    return dot / _length(lengths_ptr, j, n_prototypes, LEAST)


@triton.jit
def _length(lengths_ptr, j, n_prototypes, LEAST: tl.constexpr):
    length = tl.load(lengths_ptr + j, mask=j < n_prototypes, other=1.0)
    return tl.where(length < LEAST, LEAST, length)


@triton.jit
def _logit_gradient_kernel(
    dw_ptr, w_ptr, lengths_ptr, out_ptr, n_prototypes, tau, LEAST: tl.constexpr, BLOCK: tl.constexpr
):
    """dZ of one row over |p| tau: what is multiplied with the prototypes as they are."""
    at = tl.program_id(0).to(tl.int64) * n_prototypes
    along = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_prototypes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        w = tl.load(w_ptr + at + j, mask=j < n_prototypes, other=0.0)
        along += w * tl.load(dw_ptr + at + j, mask=j < n_prototypes, other=0.0)
    share = tl.sum(along)
    for start in range(0, n_prototypes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        w = tl.load(w_ptr + at + j, mask=j < n_prototypes, other=0.0)
        dw = tl.load(dw_ptr + at + j, mask=j < n_prototypes, other=0.0)
        dz = w * (dw - share * w) / (_length(lengths_ptr, j, n_prototypes, LEAST) * tau)
        tl.store(out_ptr + at + j, dz, mask=j < n_prototypes)


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
def _triton(student, teacher, prototypes, tau, kappa):
    relations = _alloc_relations(student, prototypes)
    n, k = relations[0].shape
    if n * k * student.size(1) == 0:
        return prototype_alignment_ref(student, teacher, prototypes, tau, kappa)
    rows, table = gpu_pair(student, teacher), prototypes.detach().float().contiguous()
    with torch.cuda.device_of(student):
        for x, w in zip(rows, relations, strict=True):
            torch.mm(x.float(), table.T, out=w)  # with ``out`` autocast leaves the product as it is
        launch = row_launch(max(k, student.size(1)))
        _relation_kernel[(2 * n,)](
            *rows, table.norm(dim=1), *relations, n, student.size(1), k, tau, LEAST=LEAST_NORM, **launch
        )
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
    _C.unit_backward(out, x, out, threads)
    return out.to(student.dtype)


@prototype_alignment_backward.register_kernel("cuda")
def _triton_backward(grad, w_student, w_teacher, saved, dist_s, dist_t, student, prototypes, tau, kappa):
    graph = grad, saved, dist_s, dist_t, w_student, w_teacher, *_graph_options(kappa), True, False
    dw, _ = graph_alignment_backward.run(*graph)
    (n, d), k = student.shape, w_student.size(1)
    if n * d * k == 0:
        return _through_prototypes(dw, w_student, student, prototypes, tau)
    table = prototypes.detach().float().contiguous()
    dz, du = torch.empty_like(w_student), w_student.new_empty(n, d)
    with torch.cuda.device_of(student):
        lengths = table.norm(dim=1)
        _logit_gradient_kernel[(n,)](dw.contiguous(), w_student, lengths, dz, k, tau, LEAST=LEAST_NORM, **row_launch(k))
        torch.mm(dz, table, out=du)
    return unit_rows_backward.run(du, student)


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
