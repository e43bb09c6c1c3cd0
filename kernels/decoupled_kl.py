r"""decoupled_kl: divergence of rows of logits in two parts, T^2 (alpha KL(b_t || b_s) + beta KL(r_t || r_s)).

b is the pair (probability of the row's own class, of all others together), r the softmax over the others alone, of
logits / T; t is the teacher, s the student. Both parts come of differences of the two rows: KL(r_t || r_s) by its
cumulants as in standardized_kl, KL(b_t || b_s) = softplus(o + x) - softplus(o) - b_t x of the teacher's log-odds o and
how far the student's are from them, x = (difference of the own logits - log of the ratio of the others' sums).

Shapes    student, teacher [N, K], one dtype; labels [N] int64; loss [N] float32, or [] for the reduction "mean" or
          "sum"; slope [N, K] = dloss/dstudent, or [0, 0] where ``with_slope`` is False.
Gradient  T (beta (r_s - r_t) - alpha m r_s) of the others, T alpha m of the own class, m = b_s - b_t. To the student
          only; the forward writes it while the row is at hand, and the backward multiplies it.
Edges     a label outside 0 .. K - 1: loss and slope 0. K = 1, with no others: 0. A non-finite entry: a non-finite loss
          of its row only.
Exact     equal rows give 0, and close ones lose no digits: float32 carries their difference, and of every sum that
          cancels the part of first order is taken out before it is rounded.
Memory    loss and slope.
Launches  on a GPU up to SMALL rows one forward and, in float32, one backward.
Floor     12 bytes an element: both rows read, the gradient written. The slope adds 8, as reading the rows again would.
Measured  13 and 10 of a pass over the bytes for 60 x 395 and 512 x 713 on two cores of an AMD EPYC, forward and
          backward: two exponentials an element.
Source    spec dakd 11; Zhao et al. 2022.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._reduction import reduced, reduced_shape, share_of_row
from vifast.kernels._registry import Op, check
from vifast.kernels._small import SMALL, counters, reduce_rows
from vifast.kernels._softmax import divergence, gpu_pair, row_launch, tilt, total


def decoupled_kl_ref(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    reduction: str,
    with_slope: bool,
) -> tuple[Tensor, Tensor]:
    acc = torch.promote_types(student.dtype, torch.float32)
    own = labels.unsqueeze(1) == torch.arange(student.size(1), device=labels.device)
    # In float64: agreeing rows cancel in float32.
    (pair_t, rest_t), (pair_s, rest_s) = (_split(x.double() / temperature, own) for x in (teacher, student))
    binary = (pair_t.exp() * (pair_t - pair_s)).sum(1)
    others = (rest_t.exp() * (rest_t - rest_s)).masked_fill(own, 0.0).sum(1)
    counts = own.any(1)
    loss = reduced(torch.where(counts, temperature**2 * (alpha * binary + beta * others), 0.0).to(acc), reduction)
    if not with_slope:
        return loss, student.new_empty(0, 0, dtype=acc)
    (r_t, r_s), pull = (rest_t.exp(), rest_s.exp()), alpha * (pair_s.exp() - pair_t.exp())[:, :1]
    share = temperature * share_of_row(len(student), reduction)
    slope = share * torch.where(own, pull, beta * (r_s - r_t) - pull * r_s)
    return loss, torch.where(counts.unsqueeze(1), slope, 0.0).to(acc)


def _split(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of (own class, all others) [N, 2], and of the softmax over the others [N, K]."""
    # The lowest number and not -inf: of a single class there are no others.
    rest = logits.masked_fill(own, torch.finfo(logits.dtype).min)
    sides = torch.stack((torch.where(own, logits, 0.0).sum(1), rest.logsumexp(1)), 1)
    return sides.log_softmax(1), rest.log_softmax(1)


@triton.jit
def _others(student_ptr, teacher_ptr, j, own, n_cols, missing):
    """Logits of columns ``j`` of both rows, but of the own class."""
    other = (j < n_cols) & (j != own)
    s = tl.load(student_ptr + j, mask=other, other=missing).to(tl.float32)
    t = tl.load(teacher_ptr + j, mask=other, other=missing).to(tl.float32)
    return other, s, t


@triton.jit
def _tempered(student_ptr, teacher_ptr, j, own, n_cols, top_s, top_t, temperature):
    """p and q of the teacher and the student before they are normalised, and their tilt."""
    other, s, t = _others(student_ptr, teacher_ptr, j, own, n_cols, 0.0)
    shift = top_s.to(tl.float64) - top_t.to(tl.float64)
    y = tl.where(other, (s.to(tl.float64) - t.to(tl.float64) - shift).to(tl.float32) / temperature, 0.0)
    p = tl.where(other, tl.exp((t - top_t) / temperature), 0.0)
    q = tl.where(other, tl.exp((s - top_s) / temperature), 0.0)
    rest, change, p_y = tilt(p, q, y)
    return p, q, rest, change, p_y


@triton.jit
def _softplus(x):
    return tl.where(x < 0.0, 0.0, x) + tl.log(1.0 + tl.exp(tl.where(x < 0.0, x, -x)))


@triton.jit
def _row_kernel(
    student_ptr, teacher_ptr, labels_ptr, rows_ptr, loss_ptr, counter_ptr, slope_ptr, n, n_cols, alpha, beta,
    temperature, share, SLOPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program, read from cache again for every sum; loss_ptr None: nobody asked for the sum of them here."""
    row = tl.program_id(0).to(tl.int64)
    own = tl.load(labels_ptr + row)
    counts = (own >= 0) & (own < n_cols)
    student_ptr += row * n_cols
    teacher_ptr += row * n_cols
    column = tl.arange(0, BLOCK)
    tops_s = tl.full((BLOCK,), float("-inf"), tl.float32)
    tops_t = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, n_cols, BLOCK):
        _other, s, t = _others(student_ptr, teacher_ptr, start + column, own, n_cols, float("-inf"))
        tops_s = tl.where(s > tops_s, s, tops_s)
        tops_t = tl.where(t > tops_t, t, tops_t)
    top_s, top_t = tl.max(tops_s), tl.max(tops_t)
    sum_p = tl.zeros((BLOCK,), tl.float32)
    sum_q = tl.zeros((BLOCK,), tl.float32)
    sum_y = tl.zeros((BLOCK,), tl.float32)
    sum_rest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        p, q, rest, _change, p_y = _tempered(
            student_ptr, teacher_ptr, start + column, own, n_cols, top_s, top_t, temperature
        )
        sum_p += p
        sum_q += q
        sum_y += p_y
        sum_rest += rest
    s_p = total(sum_p)
    kl, ratio = divergence(s_p, total(sum_q), total(sum_y), total(sum_rest))
    own_s = tl.load(student_ptr + own, mask=counts, other=0.0).to(tl.float64)
    own_t = tl.load(teacher_ptr + own, mask=counts, other=0.0).to(tl.float64)
    odds_t = (own_t - top_t) / temperature - tl.log(s_p)
    step = ((own_s - own_t) - (top_s.to(tl.float64) - top_t)) / temperature - tl.log(ratio)
    p_own = 1.0 / (1.0 + tl.exp(-odds_t))
    pair = _softplus(odds_t + step) - _softplus(odds_t) - p_own * step
    value = temperature * temperature * (alpha * tl.where(pair < 0.0, 0.0, pair) + beta * kl)
    tl.store(rows_ptr + row, tl.where(counts, value, 0.0).to(tl.float32))
    if SLOPE:
        pull = alpha * (1.0 / (1.0 + tl.exp(-odds_t - step)) - p_own)
        scale = tl.cast(share, tl.float64) * temperature
        each = scale / (ratio * s_p)
        by_change = (each * (beta - pull)).to(tl.float32)
        by_p = (each * (beta * (ratio - 1.0) + pull)).to(tl.float32)
        for start in range(0, n_cols, BLOCK):
            j = start + column
            p, _q, _rest, change, _p_y = _tempered(student_ptr, teacher_ptr, j, own, n_cols, top_s, top_t, temperature)
            slope = tl.where(j == own, (scale * pull).to(tl.float32), by_change * change - by_p * p)
            tl.store(slope_ptr + row * n_cols + j, tl.where(counts, slope, 0.0), mask=j < n_cols)
    if loss_ptr is not None:
        reduce_rows(rows_ptr, loss_ptr, counter_ptr, share, n, n, ROWS)


decoupled_kl = Op("decoupled_kl", decoupled_kl_ref)


@decoupled_kl.register_fake
def _alloc(student, teacher, labels, alpha, beta, temperature, reduction, with_slope):
    fits = student.dim() == 2 and student.shape == teacher.shape and labels.shape == student.shape[:1]
    check(fits, lambda: f"decoupled_kl: expected [N, K] twice and [N], got {list(student.shape)} and others")
    acc = torch.promote_types(student.dtype, torch.float32)
    loss = student.new_empty(reduced_shape(student.size(0), reduction), dtype=acc)
    return loss, student.new_empty(student.shape if with_slope else (0, 0), dtype=acc)


@decoupled_kl.register_kernel("cpu")
def _cpu(student, teacher, labels, alpha, beta, temperature, reduction, with_slope):
    n, k = student.shape
    args = student, teacher, labels, alpha, beta, temperature
    if n == 0 or k < 2:
        return decoupled_kl_ref(*args, reduction, with_slope)
    rows, slope = _alloc(*args, "none", with_slope)
    logits = float_rows(student), float_rows(teacher), labels.contiguous()
    how = alpha, beta, temperature, share_of_row(n, reduction)
    _C.decoupled_kl(*logits, *how, rows, slope if with_slope else None, torch.get_num_threads())
    return reduced(rows, reduction), slope


@decoupled_kl.register_kernel("cuda")
def _triton(student, teacher, labels, alpha, beta, temperature, reduction, with_slope):
    n, k = student.shape
    args = student, teacher, labels, alpha, beta, temperature
    if n == 0 or k < 2:
        return decoupled_kl_ref(*args, reduction, with_slope)
    here = reduction != "none" and n <= SMALL
    rows, slope = _alloc(*args, "none", with_slope)
    loss = rows.new_empty(()) if here else None
    how = n, k, alpha, beta, temperature, share_of_row(n, reduction)
    with torch.cuda.device_of(student):
        out = rows, loss, counters(rows) if here else None, slope
        logits = *gpu_pair(student, teacher), labels.contiguous()
        # Left to itself Triton 3.6's ptxas stops at 48 registers on sm_100 and spills.
        _row_kernel[(n,)](*logits, *out, *how, SLOPE=with_slope, ROWS=SMALL, **row_launch(k), maxnreg=64)
    return loss if here else reduced(rows, reduction), slope


def _setup(ctx, inputs, output):
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx, grad, _):
    (slope,) = ctx.saved_tensors
    return None if grad is None else (slope * grad.unsqueeze(-1)).to(ctx.dtype), *(None,) * 7


decoupled_kl.register_autograd(_backward, _setup)
