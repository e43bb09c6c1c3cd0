"""Triton kernels of prototype_alignment for few rows: to PROTOTYPED one launch each way, to SMALL two.

Forward, a program takes the cosines of PROTOTYPED rows with BLOCK_P prototypes; the last to finish makes relations,
affinities, loss and slope of them: on one multiprocessor three passes over N*K numbers in cache and three products
N x N x K, in place of a launch each for W, distances, softmax, loss and the gradient, which wait for each other.

More rows take two. Two N x N graphs of 64 rows spill registers of an sm_80, the products of the one program grow with
N^2, and other programs cannot go on: a distance of W needs whole rows of it, a weight of the gradient the softmaxes of
all. So ``relate`` ends where rows of W are complete, the launch of graph_alignment where those of the graphs are, and
the slope begins the backward.

``pull`` ends every backward: a program makes 16 rows by BLOCK_D columns of dU, and the last of each 16 rows takes
their part along U. All have one order of summation.
"""

import torch
from torch import Tensor

from vifast.kernels._lang import tl, triton
from vifast.kernels._small import PROTOTYPED, counters, last_program
from vifast.kernels._split import mean_free_rows, pull_launch
from vifast.kernels._tile import input_precision
from vifast.kernels.unit_rows import LEAST_NORM

PRECISION = input_precision("exact")
BLOCK_P = 16  # prototypes of a program


@triton.jit
def _rows(x_ptr, row, col, n, n_cols):
    mask = (row[:, None] < n) & (col[None, :] < n_cols)
    at = row[:, None].to(tl.int64) * n_cols + col[None, :]
    return tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _at_least(x, LEAST: tl.constexpr):
    return tl.where(x < LEAST, LEAST, x)  # a NaN stays


@triton.jit
def _store_logits(dot, square, length, z_ptr, stats_ptr, row, k, n, n_prototypes, tau, LEAST: tl.constexpr):
    """Cosines over tau of one side, and of each row their largest z and the sum of e^2(.. - z): stats [2, rows]."""
    z = dot / (_at_least(tl.sqrt(square), LEAST)[:, None] * length[None, :] * tau)
    inside = (row[:, None] < n) & (k[None, :] < n_prototypes)
    tl.store(z_ptr + row[:, None].to(tl.int64) * n_prototypes + k[None, :], z, mask=inside)
    top = tl.where(row < n, tl.max(tl.where(inside, z, float("-inf")), 1), 0.0)
    local = tl.arange(0, row.shape[0])
    tl.store(stats_ptr + local, top)
    square_sum = tl.sum(tl.where(inside, tl.exp(2.0 * (z - top[:, None])), 0.0), 1)
    tl.store(stats_ptr + row.shape[0] + local, square_sum)


@triton.jit
def _merged(stats_ptr, row, n_blocks):
    """Largest logit z of each row, and 1 / |e^(. - z)|."""
    top = tl.full(row.shape, float("-inf"), tl.float32)
    square = tl.zeros(row.shape, tl.float32)
    for start in range(0, n_blocks, 64):
        block = start + tl.arange(0, 64)
        at = block[:, None] * (4 * row.shape[0]) + tl.arange(0, row.shape[0])[None, :]
        z = tl.load(stats_ptr + at, mask=block[:, None] < n_blocks, other=float("-inf"))
        parts = tl.load(stats_ptr + row.shape[0] + at, mask=block[:, None] < n_blocks, other=0.0)
        new = tl.maximum(top, tl.max(z, 0))
        square = square * tl.exp(2.0 * (top - new)) + tl.sum(parts * tl.exp(2.0 * (z - new[None, :])), 0)
        top = new
    return top, 1.0 / tl.sqrt(square)


@triton.jit
def _relation(z_ptr, top, scale, row, k, n, n_prototypes):
    """W at the prototypes k, and W less the mean row, which moves no distance."""
    inside = (row[:, None] < n) & (k[None, :] < n_prototypes)
    z = tl.load(z_ptr + row[:, None].to(tl.int64) * n_prototypes + k[None, :], mask=inside, other=0.0)
    w = tl.where(inside, tl.exp(z - top[:, None]) * scale[:, None], 0.0)
    return w, tl.where(inside, w - (tl.sum(w, 0) / n)[None, :], 0.0)


@triton.jit
def _sqdist(z_ptr, top, scale, row, n, n_prototypes, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):
    """Squared distances of the rows of W to each other."""
    gram = tl.zeros((row.shape[0], row.shape[0]), tl.float32)
    square = tl.zeros(row.shape, tl.float32)
    for start in range(0, n_prototypes, BLOCK_K):
        _, c = _relation(z_ptr, top, scale, row, start + tl.arange(0, BLOCK_K), n, n_prototypes)
        gram = tl.dot(c, tl.trans(c), gram, input_precision=PRECISION)
        square += tl.sum(c * c, 1)
    both = square[:, None] + square[None, :]
    sq = both - 2.0 * gram
    own = (row[:, None] == row[None, :]) & (both - both == 0.0)
    return tl.where(own | (sq < 0.0), 0.0, sq)


@triton.jit
def _logits(
    student_ptr, teacher_ptr, prototypes_ptr, z_student_ptr, z_teacher_ptr, stats_ptr, lengths_ptr, row, n, n_cols,
    n_prototypes, tau, PRECISION: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logits of rows of both sides to the BLOCK_P prototypes of a program, and their norms."""
    k = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    dot_s = tl.zeros((BLOCK, BLOCK_P), tl.float32)
    dot_t = tl.zeros((BLOCK, BLOCK_P), tl.float32)
    square_s = tl.zeros((BLOCK,), tl.float32)
    square_t = tl.zeros((BLOCK,), tl.float32)
    square_p = tl.zeros((BLOCK_P,), tl.float32)
    for start in range(0, n_cols, BLOCK_D):
        col = start + tl.arange(0, BLOCK_D)
        p = _rows(prototypes_ptr, k, col, n_prototypes, n_cols)
        s = _rows(student_ptr, row, col, n, n_cols)
        t = _rows(teacher_ptr, row, col, n, n_cols)
        dot_s = tl.dot(s, tl.trans(p), dot_s, input_precision=PRECISION)
        dot_t = tl.dot(t, tl.trans(p), dot_t, input_precision=PRECISION)
        square_s += tl.sum(s * s, 1)
        square_t += tl.sum(t * t, 1)
        square_p += tl.sum(p * p, 1)
    length = _at_least(tl.sqrt(square_p), LEAST)
    tl.store(lengths_ptr + k, length, mask=k < n_prototypes)
    own = stats_ptr + tl.program_id(0) * 4 * BLOCK
    _store_logits(dot_s, square_s, length, z_student_ptr, own, row, k, n, n_prototypes, tau, LEAST)
    _store_logits(dot_t, square_t, length, z_teacher_ptr, own + 2 * BLOCK, row, k, n, n_prototypes, tau, LEAST)


@triton.jit
def _align_kernel(
    student_ptr, teacher_ptr, prototypes_ptr, z_ptr, stats_ptr, lengths_ptr, counter_ptr, loss_ptr, slope_ptr,
    n, n_cols, n_prototypes, tau, kappa, SLOPE: tl.constexpr, PRECISION: tl.constexpr, LEAST: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """z [2, n, K]: logits of student and teacher; stats [programs, 2, 2, BLOCK]; lengths [K]."""
    row = tl.arange(0, BLOCK)
    z_teacher_ptr = z_ptr + tl.cast(n, tl.int64) * n_prototypes
    _logits(student_ptr, teacher_ptr, prototypes_ptr, z_ptr, z_teacher_ptr, stats_ptr, lengths_ptr, row, n, n_cols,
            n_prototypes, tau, PRECISION, LEAST, BLOCK, BLOCK_P, BLOCK_D)  # fmt: skip
    if last_program(counter_ptr, tl.num_programs(0)):
        top_s, scale_s = _merged(stats_ptr, row, tl.num_programs(0))
        top_t, scale_t = _merged(stats_ptr + 2 * BLOCK, row, tl.num_programs(0))
        sq = _sqdist(z_ptr, top_s, scale_s, row, n, n_prototypes, PRECISION, BLOCK_K)
        sq_t = _sqdist(z_teacher_ptr, top_t, scale_t, row, n, n_prototypes, PRECISION, BLOCK_K)
        # Float64 from here: the difference of two near graphs is far smaller than its terms. The diagonal is the
        # largest logit of its row, 0.
        half = -0.5 * tl.cast(kappa, tl.float64)
        inside = (row[:, None] < n) & (row[None, :] < n)
        u = half * sq.to(tl.float64)
        v = half * sq_t.to(tl.float64)
        e_u = tl.where(inside, tl.exp(u), 0.0)
        e_v = tl.where(inside, tl.exp(v), 0.0)
        inv_u = 1.0 / tl.where(row < n, tl.sum(e_u, 1), 1.0)
        inv_v = 1.0 / tl.where(row < n, tl.sum(e_v, 1), 1.0)
        kl = tl.sum(e_v * tl.where(inside, v - u, 0.0), 1) * inv_v - tl.log(inv_u / inv_v)
        tl.store(loss_ptr, (tl.sum(tl.where(row < n, kl, 0.0)) / n).to(tl.float32))
        if SLOPE:
            c64 = e_u * (inv_u[:, None] + inv_u[None, :]) - e_v * (inv_v[:, None] + inv_v[None, :])
            s = tl.where(row[:, None] == row[None, :], 0.0, c64 * (2.0 * half / n)).to(tl.float32)
            total = tl.sum(s, 1)
            share = 0.5 * tl.sum(s * sq, 1)  # <dW, W> of unit rows
            for start in range(0, n_prototypes, BLOCK_K):
                j = start + tl.arange(0, BLOCK_K)
                w, c = _relation(z_ptr, top_s, scale_s, row, j, n, n_prototypes)
                dw = total[:, None] * c - tl.dot(s, c, input_precision=PRECISION)
                per = tl.load(lengths_ptr + j, mask=j < n_prototypes, other=1.0) * tau
                at = slope_ptr + row[:, None].to(tl.int64) * n_prototypes + j[None, :]
                mask = (row[:, None] < n) & (j[None, :] < n_prototypes)
                tl.store(at, w * (dw - share[:, None] * w) / per[None, :], mask=mask)


def align(
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    loss: Tensor,
    slope: Tensor,
    tau: float,
    kappa: float,
    with_slope: bool,
) -> None:
    """Loss and slope of at most PROTOTYPED contiguous rows, into what the op allocated."""
    (n, d), k = student.shape, len(prototypes)
    block, programs = max(16, triton.next_power_of_2(n)), triton.cdiv(k, BLOCK_P)
    z, stats, lengths = (loss.new_empty(shape) for shape in ((2, n, k), (programs, 4, block), (k,)))
    with torch.cuda.device_of(student):
        _align_kernel[(programs,)](
            student, teacher, prototypes, z, stats, lengths, counters(student), loss, slope, n, d, k, tau, kappa,
            SLOPE=with_slope, PRECISION=PRECISION, LEAST=LEAST_NORM, BLOCK=block, BLOCK_P=BLOCK_P, BLOCK_D=16,
            BLOCK_K=32, num_warps=8, num_stages=2,
        )  # fmt: skip


@triton.jit
def _relate(z_ptr, stats_ptr, row, n, n_prototypes, n_blocks, BLOCK_K: tl.constexpr):
    """Logits of rows become W, in place."""
    top, scale = _merged(stats_ptr, row, n_blocks)
    for start in range(0, n_prototypes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at = z_ptr + row[:, None].to(tl.int64) * n_prototypes + k[None, :]
        mask = (row[:, None] < n) & (k[None, :] < n_prototypes)
        z = tl.load(at, mask=mask, other=0.0)
        tl.store(at, tl.exp(z - top[:, None]) * scale[:, None], mask=mask)


@triton.jit
def _relations_kernel(
    student_ptr, teacher_ptr, prototypes_ptr, w_student_ptr, w_teacher_ptr, stats_ptr, lengths_ptr, counter_ptr, n,
    n_cols, n_prototypes, tau, PRECISION: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The last program of each BLOCK rows makes W of their logits."""
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    programs = tl.num_programs(0)
    stats_ptr += tl.program_id(1) * programs * (4 * BLOCK)
    _logits(student_ptr, teacher_ptr, prototypes_ptr, w_student_ptr, w_teacher_ptr, stats_ptr, lengths_ptr, row, n,
            n_cols, n_prototypes, tau, PRECISION, LEAST, BLOCK, BLOCK_P, BLOCK_D)  # fmt: skip
    if last_program(counter_ptr + tl.program_id(1), programs):
        _relate(w_student_ptr, stats_ptr, row, n, n_prototypes, programs, BLOCK_K)
        _relate(w_teacher_ptr, stats_ptr + 2 * BLOCK, row, n, n_prototypes, programs, BLOCK_K)


def relate(student: Tensor, teacher: Tensor, prototypes: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """W [N, K] of at most SMALL contiguous rows of student and teacher, and the norms of the prototypes."""
    (n, d), k = student.shape, len(prototypes)
    grid = triton.cdiv(k, BLOCK_P), triton.cdiv(n, PROTOTYPED)
    shapes = (n, k), (n, k), (*grid, 4, PROTOTYPED), (k,)
    w_student, w_teacher, stats, lengths = (student.new_empty(shape, dtype=torch.float32) for shape in shapes)
    with torch.cuda.device_of(student):
        _relations_kernel[grid](
            student, teacher, prototypes, w_student, w_teacher, stats, lengths, counters(student), n, d, k, tau,
            PRECISION=PRECISION, LEAST=LEAST_NORM, BLOCK=PROTOTYPED, BLOCK_P=BLOCK_P, BLOCK_D=16, BLOCK_K=32,
            num_warps=8, num_stages=2,
        )  # fmt: skip
    return w_student, w_teacher, lengths


@triton.jit
def _sum_of_inverses(saved_ptr, row, col, n):
    at_row = tl.load(saved_ptr + row, mask=row < n, other=0.0)
    at_col = tl.load(saved_ptr + col, mask=col < n, other=0.0)
    return at_row[:, None] + at_col[None, :]


@triton.jit
def _slope_kernel(
    w_ptr, lengths_ptr, saved_ptr, sq_student_ptr, sq_teacher_ptr, slope_ptr, n, n_prototypes, tau, kappa,
    PRECISION: tl.constexpr, ANCHORS: tl.constexpr, PARTNERS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """ANCHORS rows by BLOCK_D prototypes, which lie along the rows of the product.

    saved [6, n], whose rows 1 and 4 are the inverse sums of exponentials: the diagonal is the largest logit, 0.
    """
    row = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS).to(tl.int64)
    col = tl.arange(0, PARTNERS).to(tl.int64)
    k = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    other = (row[:, None] < n) & (col[None, :] < n) & (row[:, None] != col[None, :])
    at = row[:, None] * n + col[None, :]
    sq = tl.load(sq_student_ptr + at, mask=other, other=0.0)
    sq_t = tl.load(sq_teacher_ptr + at, mask=other, other=0.0)
    half = -0.5 * tl.cast(kappa, tl.float64)
    c64 = tl.exp(half * sq.to(tl.float64)) * _sum_of_inverses(saved_ptr + n, row, col, n)
    c64 -= tl.exp(half * sq_t.to(tl.float64)) * _sum_of_inverses(saved_ptr + 4 * n, row, col, n)
    s = tl.where(other, c64 * (2.0 * half / n), 0.0).to(tl.float32)
    share = 0.5 * tl.sum(s * sq, 1)  # <dW, W> of unit rows
    c, mean = mean_free_rows(w_ptr, col, k, n, n_prototypes)
    pulled = tl.dot(tl.trans(c), tl.trans(s), input_precision=PRECISION)
    mask = (k[:, None] < n_prototypes) & (row[None, :] < n)
    at_k = row[None, :] * n_prototypes + k[:, None]
    w = tl.load(w_ptr + at_k, mask=mask, other=0.0)
    dw = tl.sum(s, 1)[None, :] * (w - mean[:, None]) - pulled
    per = tl.load(lengths_ptr + k, mask=k < n_prototypes, other=1.0) * tau
    tl.store(slope_ptr + at_k, w * (dw - share[None, :] * w) / per[:, None], mask=mask)


def incline(
    relation: Tensor, lengths: Tensor, saved: Tensor, sq_student: Tensor, sq_teacher: Tensor, tau: float, kappa: float
) -> Tensor:
    """Slope of at most SMALL rows from W, the norms of the prototypes and the state of graph_alignment."""
    slope, (grid, blocks) = torch.empty_like(relation), pull_launch(relation, "exact")
    with torch.cuda.device_of(relation):
        _slope_kernel[grid](
            relation, lengths, saved, sq_student, sq_teacher, slope, *relation.shape, tau, kappa, **blocks
        )  # fmt: skip
    return slope


@triton.jit
def _pull_kernel(
    grad_ptr, slope_ptr, student_ptr, prototypes_ptr, du_ptr, counter_ptr, out_ptr, n, n_cols, n_prototypes,
    PRECISION: tl.constexpr, LEAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows by BLOCK_D columns of dU = slope P; then (dU - <dU, U> U) / |F| of the rows that are complete."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    du = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, n_prototypes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        slope = _rows(slope_ptr, row, k, n, n_prototypes)
        du = tl.dot(slope, _rows(prototypes_ptr, k, col, n_prototypes, n_cols), du, input_precision=PRECISION)
    mask = (row[:, None] < n) & (col[None, :] < n_cols)
    tl.store(du_ptr + row[:, None].to(tl.int64) * n_cols + col[None, :], du, mask=mask)
    if last_program(counter_ptr + tl.program_id(0), tl.num_programs(1)):
        square = tl.zeros((BLOCK_M,), tl.float32)
        along = tl.zeros((BLOCK_M,), tl.float32)
        for start in range(0, n_cols, BLOCK_R):
            c = start + tl.arange(0, BLOCK_R)
            x = _rows(student_ptr, row, c, n, n_cols)
            square += tl.sum(x * x, 1)
            along += tl.sum(x * _rows(du_ptr, row, c, n, n_cols), 1)
        inverse = 1.0 / _at_least(tl.sqrt(square), LEAST)
        share = along * inverse * inverse
        inverse *= tl.load(grad_ptr)
        for start in range(0, n_cols, BLOCK_R):
            c = start + tl.arange(0, BLOCK_R)
            step = _rows(du_ptr, row, c, n, n_cols) - share[:, None] * _rows(student_ptr, row, c, n, n_cols)
            at = out_ptr + row[:, None].to(tl.int64) * n_cols + c[None, :]
            tl.store(at, step * inverse[:, None], mask=(row[:, None] < n) & (c[None, :] < n_cols))


def pull(grad: Tensor, slope: Tensor, student: Tensor, prototypes: Tensor, out: Tensor) -> None:
    """Gradient of at most SMALL contiguous rows, into what the op allocated."""
    (n, d), k = student.shape, len(prototypes)
    with torch.cuda.device_of(student):
        _pull_kernel[(triton.cdiv(n, 16), triton.cdiv(d, 32))](
            grad, slope, student, prototypes, slope.new_empty(n, d), counters(student), out, n, d, k,
            PRECISION=PRECISION, LEAST=LEAST_NORM, BLOCK_M=16, BLOCK_D=32, BLOCK_K=32, BLOCK_R=128, num_warps=4,
        )  # fmt: skip
