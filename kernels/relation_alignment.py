r"""relation_alignment: Kullback-Leibler divergence between the relations, softmaxes of cosines, of a batch's rows.

    p_i = softmax_{j != i} cos(s_i, s_j) / t     q_i likewise of the teacher, which is constant
    loss = t^2 / N * sum_i keep_i KL(q_i || p_i)

cos = 1 - |u - v|^2 / 2 between unit rows, and a softmax does not see the 1: these are the graphs of ``graph_alignment``
over ``unit_rows``, whose definitions and CPU kernels this op calls one after the other.

Shapes   student [N, D], teacher [N, E], one dtype and device; keep [N] or None. Out: loss [] float32 (float64 for
         float64); saved, dist [N, N] twice as graph_alignment leaves them; unit rows of both sides, or of few rows on
         a GPU the norms [N] of the student.
Defined  a row shorter than 1e-12 is divided by that; a row without columns (N = 1) has loss 0.
Backward that of graph_alignment, dU_i = sum_j s_ij (u_i - u_j); of few rows on a GPU
         (dU_i - u_i sum_j s_ij |u_i - u_j|^2 / 2) / |x_i|, whose last factor is at hand before dU is.
Exact    on a GPU up to SMALL rows products are of the rows as they are, divided by norms that the same pass adds up; a
         close pair is taken from the difference of its unit rows.
Memory   unit rows of both sets, the gradient, and what graph_alignment keeps; no unit rows up to SMALL rows on a GPU.
Launches on a GPU up to SMALL rows one forward and one backward.
Floor    the products of graph_alignment.
Measured 1.5, 1.0 and 0.52 of the platform's products (60, 120, 2048 rows of 2048, both ways, 2 cores of an AMD EPYC).
Source   spec dakd 11 (relation KL).
"""

import torch
from torch import Tensor

from vifast.kernels._registry import Op, check
from vifast.kernels._small import SMALL
from vifast.kernels._tile import gpu_rows
from vifast.kernels.graph_alignment import alloc as alloc_graphs
from vifast.kernels.graph_alignment import graph_alignment, graph_alignment_backward
from vifast.kernels.graph_alignment_small import align, pull_few
from vifast.kernels.unit_rows import unit_rows, unit_rows_backward


def _options(temperature: float, precision: str) -> tuple:
    """scale, floor, diagonal, symmetric, precision of graph_alignment."""
    return -0.5 / temperature, 0.0, False, False, precision


def _forward(unit, graph, student, teacher, keep, temperature, precision):
    sides = unit(student), unit(teacher)
    rows, *state = graph(*sides, *_options(temperature, precision), "none", temperature**2)
    loss = (rows if keep is None else rows * keep.to(rows.dtype)).sum() / max(len(rows), 1)
    if not _few(student):
        return loss, *state, *sides, rows.new_empty(0)
    return loss, *state, *(rows.new_empty(0, 0) for _ in sides), student.detach().float().norm(dim=1)


def _few(x: Tensor) -> bool:
    return x.device.type != "cpu" and x.dtype != torch.float64 and x.size(0) <= SMALL


def relation_alignment_ref(
    student: Tensor, teacher: Tensor, keep: Tensor | None, temperature: float, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    definitions = unit_rows.definition, graph_alignment.definition
    return _forward(*definitions, student, teacher.detach(), keep, temperature, precision)


relation_alignment = Op("relation_alignment", relation_alignment_ref)


@relation_alignment.register_fake
def _alloc(student, teacher, keep, temperature, precision):
    _, *state = alloc_graphs(student, teacher, *_options(temperature, precision), "none", 1.0)
    fits = keep is None or (keep.dim() == 1 and keep.size(0) == student.size(0))
    check(fits, lambda: f"relation_alignment: expected one keep per row, got {list(keep.shape)}")
    acc = torch.promote_types(student.dtype, torch.float32)
    few, n = _few(student), student.size(0)
    sides = (student.new_empty((0, 0) if few else x.shape, dtype=acc) for x in (student, teacher))
    return student.new_empty((), dtype=acc), *state, *sides, student.new_empty(n if few else 0, dtype=acc)


@relation_alignment.register_kernel("cpu")
def _cpu(student, teacher, keep, temperature, precision):
    return _forward(unit_rows.run, graph_alignment.run, student, teacher, keep, temperature, precision)


@relation_alignment.register_kernel("cuda")
def _triton(student, teacher, keep, temperature, precision):
    n, options = len(student), _options(temperature, precision)
    if n <= 1 or n > SMALL:
        return _cpu(student, teacher, keep, temperature, precision)
    x, y = gpu_rows(student), gpu_rows(teacher)
    _, *state = alloc_graphs(student, teacher, *options, "mean", 1.0)
    loss, norm, of_teacher = (state[1].new_empty(shape) for shape in ((), n, n))
    with torch.cuda.device_of(x):
        keep = None if keep is None else keep.contiguous()
        align(x, y, *options, "mean", temperature**2, (loss, *state), (norm, of_teacher), keep)
    return loss, *state, *(loss.new_empty(0, 0) for _ in range(2)), norm


def _backward_ref(
    grad: Tensor,
    saved: Tensor,
    dist_s: Tensor,
    dist_t: Tensor,
    unit_s: Tensor,
    unit_t: Tensor,
    norm: Tensor,
    student: Tensor,
    teacher: Tensor,
    keep: Tensor | None,
    temperature: float,
    precision: str,
) -> Tensor:
    sides = unit_rows.definition(student), unit_rows.definition(teacher)
    ops = graph_alignment_backward.definition, unit_rows_backward.definition
    return _pull(*ops, grad, (saved, dist_s, dist_t, *sides), student, keep, temperature, precision)


def _pull(graph, unit, grad, state, student, keep, temperature, precision):
    rows = (grad / max(len(student), 1)).expand(len(student))
    rows = (rows if keep is None else rows * keep.to(rows.dtype)).contiguous()
    options = *_options(temperature, precision), "none", temperature**2, True, False
    return unit(graph(rows, *state, *options)[0], student)


relation_alignment_backward = Op("relation_alignment_backward", _backward_ref)


@relation_alignment_backward.register_fake
def _alloc_backward(
    grad, saved, dist_s, dist_t, unit_s, unit_t, norm, student, teacher, keep, temperature, precision
):  # fmt: skip
    return torch.empty_like(student, memory_format=torch.contiguous_format)


@relation_alignment_backward.register_kernel("cpu")
def _cpu_backward(
    grad, saved, dist_s, dist_t, unit_s, unit_t, norm, student, teacher, keep, temperature, precision
):  # fmt: skip
    ops = graph_alignment_backward.run, unit_rows_backward.run
    return _pull(*ops, grad, (saved, dist_s, dist_t, unit_s, unit_t), student, keep, temperature, precision)


@relation_alignment_backward.register_kernel("cuda")
def _triton_backward(
    grad, saved, dist_s, dist_t, unit_s, unit_t, norm, student, teacher, keep, temperature, precision
):  # fmt: skip
    if norm.size(0) <= 1:
        args = saved, dist_s, dist_t, unit_s, unit_t, norm, student, teacher, keep, temperature, precision
        return _cpu_backward(grad, *args)
    x, y, (scale, floor, _, symmetric, _) = gpu_rows(student), gpu_rows(teacher), _options(temperature, precision)
    out, options = torch.empty_like(x), (scale, floor, symmetric, precision, "mean", temperature**2)
    with torch.cuda.device_of(x):
        keep = None if keep is None else keep.contiguous()
        pull_few(grad.contiguous(), saved, dist_s, dist_t, x, y, *options, (out, None), norm, keep)
    return out.to(student.dtype)


def _setup(ctx, inputs, output):
    student, teacher, keep, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], student, teacher, keep)


def _backward(ctx, grad, *_):
    if grad is None or not ctx.needs_input_grad[-5]:
        return (None,) * 5
    return relation_alignment_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 4


relation_alignment.register_autograd(_backward, _setup)
