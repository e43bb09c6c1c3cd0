r"""prototype_alignment: do the samples of a batch relate to each other, seen through prototypes, as a teacher's do?

    R(F) = softmax_rows(cos(F, P) / tau)     W(F) = R / |R|     A(F) = softmax_rows(kappa W W^T), the diagonal included
    loss = mean_i KL(A(teacher)_i || A(student)_i); the teacher is constant

Shapes   student, teacher [N, D], prototypes [K, D], one dtype and device. Out: loss [] float32 (float64 for float64);
         slope [N, K], the factor of p_k in dloss/du_i of the unit row u_i, or [0, 0] where ``with_slope`` is False. Of
         PROTOTYPED + 1 to SMALL rows on a GPU it is W, from which the backward makes the slope with the norms [K] of
         the prototypes and the state [6 + N, N] of graph_alignment, float64; both are empty elsewhere.
Defined  norms of rows are at least 1e-12, so a zero row has cosine 0. Without rows or prototypes the loss is 0.
Backward with dW of graph_alignment, dZ = W (dW - <dW, W> W), slope = dZ / (|p| tau), dU = slope P and
         dF = (dU - <dU, U> U) / |F|. That is ckda 5.5, whose dR = (dW - <dW, W> W) / |R| is orthogonal to R = |R| W:
         <dR, R> = 0, and |R| cancels. The forward makes the slope while W is at hand, or leaves it to a backward's
         first launch.
Exact    A is graph_alignment's softmax of -kappa/2 ||w_i - w_j||^2: with the published kappa of 0.1 the loss is 1e-5
         and smaller, and logits taken from products would leave few digits of it.
Memory   two N x K arrays, packed rows, the gradient; no N x N beyond what graph_alignment keeps.
Launches on a GPU up to PROTOTYPED rows one forward and one backward, up to SMALL two and two, see
         prototype_alignment_small.
Floor    2 products N x K x D forward and 1 backward; 2 and 2 of N x N x K.
Measured 1.2 and 1.2 of the platform's products for 32 and 512 rows, 713 prototypes of 768 on two cores of an AMD EPYC,
         forward and backward.
Source   specs ckda 5.2 to 5.5.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows, product
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels._small import PROTOTYPED, SMALL
from vifast.kernels._softmax import gpu_pair, row_launch
from vifast.kernels.graph_alignment import (
    SAVED,
    graph_alignment,
    graph_alignment_backward,
    graph_alignment_ref,
)
from vifast.kernels.graph_alignment_small import align as align_graphs
from vifast.kernels.prototype_alignment_small import align, incline, pull, relate
from vifast.kernels.unit_rows import LEAST_NORM, row_norm, unit_rows_backward


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=LEAST_NORM)


def _relation(feat: Tensor, prototypes: Tensor, tau: float) -> Tensor:
    return torch.softmax(_unit(feat) @ _unit(prototypes).T / tau, 1)


def _graph_options(kappa: float) -> tuple:
    return -0.5 * kappa, 0.0, True, False, "exact", "mean", 1.0


def _keeps_graphs(student: Tensor, prototypes: Tensor) -> bool:
    """Whether the slope is left to the backward."""
    few = student.device.type == "cuda" and PROTOTYPED < student.size(0) <= SMALL
    return few and student.dtype != torch.float64 and student.size(1) * prototypes.size(0) > 0


def _new_graphs(x: Tensor) -> Tensor:
    return x.new_empty(SAVED + x.size(0), x.size(0), dtype=torch.float64)


def _parts(graphs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What graph_alignment keeps of few rows: its state, and the squared distances of student and teacher."""
    n = graphs.size(1)
    return graphs[:SAVED], *graphs[SAVED:].view(torch.float32).view(2, n, n)


def prototype_alignment_ref(
    student: Tensor, teacher: Tensor, prototypes: Tensor, tau: float, kappa: float, with_slope: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    acc = torch.promote_types(student.dtype, torch.float32)
    with torch.no_grad():
        w_teacher = _unit(_relation(teacher.to(acc), prototypes.detach().to(acc), tau))
    w_student = _unit(_relation(student.to(acc), prototypes.detach().to(acc), tau))
    loss, *state = graph_alignment_ref(w_student, w_teacher, *_graph_options(kappa))
    if not with_slope:
        return loss, w_teacher.new_empty(0, 0), *_no_graphs(w_teacher)
    with torch.no_grad():
        lengths = prototypes.to(acc).norm(dim=1).clamp(min=LEAST_NORM)
        if _keeps_graphs(student, prototypes):
            graphs = _new_graphs(student)
            for part, value in zip(_parts(graphs), state, strict=True):
                part.copy_(value)
            return loss, w_student.detach(), lengths, graphs
        dw = _relation_gradient(graph_alignment_backward.definition, w_student, w_teacher, state, kappa)
        return loss, _slope(dw, w_student, lengths, tau), *_no_graphs(dw)


def _no_graphs(like: Tensor) -> tuple[Tensor, Tensor]:
    return like.new_empty(0), like.new_empty(0)


def _slope(dw: Tensor, w: Tensor, lengths: Tensor, tau: float) -> Tensor:
    return w * _across(dw, w) / (lengths * tau)


def _relation_gradient(graph_backward, w_student, w_teacher, state, kappa):
    """dW of the mean over rows."""
    return graph_backward(w_student.new_ones(()), *state, w_student, w_teacher, *_graph_options(kappa), True, False)[0]


def _across(grad: Tensor, unit: Tensor) -> Tensor:
    """What of each row of grad is orthogonal to the unit row: the gradient of a normalisation, before its 1 / norm."""
    return grad - (grad * unit).sum(1, keepdim=True) * unit


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
def _alloc(student, teacher, prototypes, tau, kappa, with_slope):
    fits = student.dim() == 2 and student.shape == teacher.shape and student.shape[1:] == prototypes.shape[1:]
    check(
        fits,
        lambda: (
            "prototype_alignment: expected [N, D], [N, D], [K, D], got "
            f"{list(student.shape)}, {list(teacher.shape)}, {list(prototypes.shape)}"
        ),
    )
    acc, (n, k) = torch.promote_types(student.dtype, torch.float32), (student.size(0), prototypes.size(0))
    loss, slope = (student.new_empty(shape, dtype=acc) for shape in ((), (n, k) if with_slope else (0, 0)))
    if not (with_slope and _keeps_graphs(student, prototypes)):
        return loss, slope, *_no_graphs(slope)
    return loss, slope, slope.new_empty(k), _new_graphs(student)


def _relations_like(student, prototypes):
    return tuple(student.new_empty(student.size(0), prototypes.size(0), dtype=torch.float32) for _ in range(2))


@prototype_alignment.register_kernel("cpu")
def _cpu(student, teacher, prototypes, tau, kappa, with_slope):
    if student.numel() * len(prototypes) == 0:
        return prototype_alignment_ref(student, teacher, prototypes, tau, kappa, with_slope)
    relations, threads = _relations_like(student, prototypes), torch.get_num_threads()
    x, y, p = (float_rows(rows) for rows in (student, teacher, prototypes))
    _C.prototype_relations(x, y, p, tau, *relations, threads)
    loss, *state = graph_alignment.run(*relations, *_graph_options(kappa))
    slope = x.new_empty(0, 0)
    if with_slope:
        slope = _relation_gradient(graph_alignment_backward.run, *relations, state, kappa)
        _C.prototype_backward(slope, relations[0], p, tau, threads)
    return loss, slope, *_no_graphs(slope)


@prototype_alignment.register_kernel("cuda")
def _triton(student, teacher, prototypes, tau, kappa, with_slope):
    if student.numel() * len(prototypes) == 0:
        return prototype_alignment_ref(student, teacher, prototypes, tau, kappa, with_slope)
    rows, table = gpu_pair(student, teacher), prototypes.detach().contiguous()
    if len(student) <= PROTOTYPED:
        loss, slope, *_ = out = _alloc(student, teacher, prototypes, tau, kappa, with_slope)
        align(*rows, table, loss, slope, tau, kappa, with_slope)
        return out
    (n, d), k = student.shape, len(table)
    with torch.cuda.device_of(student):
        if n <= SMALL:
            *relations, lengths = relate(*rows, table, tau)
            loss, graphs = lengths.new_empty(()), _new_graphs(student)
            align_graphs(*relations, *_graph_options(kappa), (loss, *_parts(graphs)))
            kept = relations[0], lengths, graphs
            return loss, *(kept if with_slope else (lengths.new_empty(0, 0), *_no_graphs(lengths)))
        relations, table = _relations_like(student, prototypes), table.float()
        lengths = table.norm(dim=1)
        for x, w in zip(rows, relations, strict=True):
            torch.mm(x.float(), table.T, out=w)  # with ``out`` autocast leaves the product as it is
        launch = row_launch(max(k, d))
        _relation_kernel[(2 * n,)](*rows, lengths, *relations, n, d, k, tau, LEAST=LEAST_NORM, **launch)
        loss, *state = graph_alignment.run(*relations, *_graph_options(kappa))
        slope = relations[0].new_empty(0, 0)
        if with_slope:
            dw = _relation_gradient(graph_alignment_backward.run, *relations, state, kappa).contiguous()
            slope = torch.empty_like(dw)
            _logit_gradient_kernel[(n,)](
                dw, relations[0], lengths, slope, k, tau, LEAST=LEAST_NORM, **row_launch(k)
            )  # fmt: skip
    return loss, slope, *_no_graphs(slope)


def _backward_ref(
    grad: Tensor,
    slope: Tensor,
    lengths: Tensor,
    graphs: Tensor,
    student: Tensor,
    prototypes: Tensor,
    tau: float,
    kappa: float,
) -> Tensor:
    if lengths.numel() > 0:
        p, q = ((-0.5 * kappa * sq.double()).softmax(1) for sq in _parts(graphs)[1:])
        s = ((p - q + (p - q).T) * (-kappa / len(p))).fill_diagonal_(0.0).to(slope.dtype)
        slope = _slope(s.sum(1, keepdim=True) * slope - s @ slope, slope, lengths, tau)
    x, du = student.to(grad.dtype), (grad * slope) @ prototypes.to(grad.dtype)
    return (_across(du, _unit(x)) / x.norm(dim=1, keepdim=True).clamp(min=LEAST_NORM)).to(student.dtype)


prototype_alignment_backward = Op("prototype_alignment_backward", _backward_ref)


@prototype_alignment_backward.register_fake
def _alloc_backward(grad, slope, lengths, graphs, student, prototypes, tau, kappa):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


@prototype_alignment_backward.register_kernel("cpu")
def _cpu_backward(grad, slope, lengths, graphs, student, prototypes, tau, kappa):
    x, p = float_rows(student), float_rows(prototypes)
    out = product(grad * slope, p.T, torch.empty_like(x))
    _C.unit_backward(out, x, out, torch.get_num_threads())
    return out.to(student.dtype)


@prototype_alignment_backward.register_kernel("cuda")
def _triton_backward(grad, slope, lengths, graphs, student, prototypes, tau, kappa):
    if slope.numel() * student.size(1) == 0:
        return _backward_ref(grad, slope, lengths, graphs, student, prototypes, tau, kappa)
    x, table = gpu_pair(student, prototypes)
    if len(student) <= SMALL:
        out = torch.empty_like(student, memory_format=torch.contiguous_format)
        if lengths.numel() > 0:
            slope = incline(slope, lengths, *_parts(graphs), tau, kappa)
        pull(grad, slope, x, table, out)
        return out
    with torch.cuda.device_of(student):
        du = torch.mm(grad * slope, table.float(), out=torch.empty_like(x, dtype=torch.float32))
    return unit_rows_backward.run(du, student)


def _setup(ctx, inputs, output):
    student, _, prototypes, *ctx.options, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], student, prototypes)


def _backward(ctx, grad, *_):
    if grad is None or not ctx.needs_input_grad[-6]:
        return (None,) * 6
    return prototype_alignment_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 5


prototype_alignment.register_autograd(_backward, _setup)
