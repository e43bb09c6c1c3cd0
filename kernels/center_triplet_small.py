"""Triton kernels of center_triplet for few rows: one launch forward and one backward.

Nobody can wait for centers that others make, so every program makes all of them for its few columns: a product of who
shares an identity with whom, and the rows. It lays them out in memory of its own, from where it reads them row by row.

Forward, a program adds up the squares of direct differences of ANCHORS samples to all others over its COLUMNS, so that
nothing cancels and no winner has to be found again. The last program of the same anchors sums over the columns and
mines, and the last of those adds the terms up in order. Backward, a program has BLOCK_D columns of one modality's
gradient, the pulls of anchors and partners at each other as products once more; the mean over an identity is its own
adjoint.

Both work in numbers relative to a row, which moves no distance and no gradient.
"""

import torch
from torch import Tensor

from vifast.kernels._centers import (
    BLOCK_D,
    PRECISION,
    center_launch,
    center_rows,
    center_shares,
    moved_rows,
    sharing,
    square_column,
)
from vifast.kernels._lang import tl, triton
from vifast.kernels._small import counters, last_program, reduce_rows
from vifast.kernels._split import ANCHORS, COLUMNS
from vifast.kernels._tile import finite, load_origin
from vifast.kernels.batch_hard import FLOOR
from vifast.kernels.batch_hard_small import keep_best, keys


@triton.jit
def _mine(sq, same, i, j, n, dist_ptr, index_ptr, margin, FLOOR_: tl.constexpr):
    """Farthest positive and nearest negative of samples i, stored, and their hinge. The lower index wins a tie."""
    pos, neg = keys(sq, same, j[None, :] < n)
    nothing = tl.full(i.shape, float("-inf"), tl.float32)
    nobody = tl.full(i.shape, -1, tl.int64)
    _, i_pos = keep_best(pos, 0, nothing, nobody)
    _, i_neg = keep_best(neg, 0, nothing, nobody)
    sq_pos = tl.sum(tl.where(j[None, :] == i_pos[:, None], sq, 0.0), 1)
    sq_neg = tl.sum(tl.where(j[None, :] == i_neg[:, None], sq, 0.0), 1)
    d_pos = tl.sqrt_rn(tl.where(sq_pos < FLOOR_, FLOOR_, sq_pos))
    d_neg = tl.where(i_neg < 0, float("inf"), tl.sqrt_rn(tl.where(sq_neg < FLOOR_, FLOOR_, sq_neg)))
    tl.store(dist_ptr + i, d_pos, mask=i < n)
    tl.store(dist_ptr + n + i, d_neg, mask=i < n)
    tl.store(index_ptr + i, i_pos, mask=i < n)
    tl.store(index_ptr + n + i, i_neg, mask=i < n)
    gap = d_pos - d_neg + margin
    return tl.where(gap < 0.0, 0.0, gap)


@triton.jit
def _forward_kernel(
    v_ptr, i_ptr, labels_ptr, work_ptr, parts_ptr, terms_ptr, counter_ptr, loss_ptr, dist_ptr, index_ptr, n, n_cols,
    margin, sample_weight, SYMMETRIC: tl.constexpr, FLOOR_: tl.constexpr, PRECISION: tl.constexpr,
    ANCHORS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """work [programs, 4, BLOCK_D, ROWS]: centers and samples of some columns; parts [programs, 4, ANCHORS, ROWS]."""
    local = tl.arange(0, ANCHORS)
    i = tl.program_id(0) * ANCHORS + local
    j = tl.arange(0, ROWS)
    once = center_shares(labels_ptr, j, n, BLOCK_M)
    part = tl.program_id(0) * tl.num_programs(1)
    c_v = work_ptr + (part + tl.program_id(1)) * (4 * BLOCK_D * ROWS)
    c_i = c_v + BLOCK_D * ROWS
    f_v = c_i + BLOCK_D * ROWS
    f_i = f_v + BLOCK_D * ROWS
    cv_to_c = tl.zeros((ANCHORS, ROWS), tl.float32)
    ci_to_c = tl.zeros((ANCHORS, ROWS), tl.float32)
    v_to_c = tl.zeros((ANCHORS, ROWS), tl.float32)
    last = tl.zeros((ANCHORS, ROWS), tl.float32)
    first = tl.program_id(1) * COLUMNS
    for start in range(first, tl.minimum(first + COLUMNS, n_cols), BLOCK_D):
        k = tl.arange(0, BLOCK_D)
        col = start + k
        origin = load_origin(v_ptr, col, n_cols)
        at = k[None, :] * ROWS + j[:, None]
        tl.store(c_v + at, center_rows(v_ptr, origin, labels_ptr, once, j, col, n, n_cols, PRECISION, BLOCK_M))
        tl.store(c_i + at, center_rows(i_ptr, origin, labels_ptr, once, j, col, n, n_cols, PRECISION, BLOCK_M))
        tl.store(f_v + at, moved_rows(v_ptr, origin, j, col, n, n_cols))
        tl.store(f_i + at, moved_rows(i_ptr, origin, j, col, n, n_cols))
        tl.debug_barrier()
        for column in range(0, tl.minimum(BLOCK_D, n_cols - start)):
            cv_to_c += square_column(c_v, c_i, column, i, j, ROWS)
            ci_to_c += square_column(c_i, c_v, column, i, j, ROWS)
            v_to_c += square_column(f_v, c_i, column, i, j, ROWS)
            if SYMMETRIC:
                last += square_column(f_i, c_v, column, i, j, ROWS)
            else:
                last += square_column(c_v, f_i, column, i, j, ROWS)
        tl.debug_barrier()
    pair = local[:, None] * ROWS + j[None, :]
    own = parts_ptr + (part + tl.program_id(1)) * (4 * ANCHORS * ROWS) + pair
    tl.store(own, cv_to_c)
    tl.store(own + ANCHORS * ROWS, ci_to_c)
    tl.store(own + 2 * ANCHORS * ROWS, v_to_c)
    tl.store(own + 3 * ANCHORS * ROWS, last)
    if last_program(counter_ptr + tl.program_id(0), tl.num_programs(1)):
        same = sharing(labels_ptr, i, j, n) > 0.0
        center = center_shares(labels_ptr, i, n, BLOCK_M) / tl.sum(once, 0)  # weight of a center beside sample i
        term = tl.zeros((ANCHORS,), tl.float32)
        for t in tl.static_range(4):
            sq = tl.zeros((ANCHORS, ROWS), tl.float32)
            for chunk in range(0, tl.num_programs(1)):
                sq += tl.load(parts_ptr + ((part + chunk) * 4 + t) * (ANCHORS * ROWS) + pair)
            hinge = _mine(sq, same, i, j, n, dist_ptr + 2 * t * n, index_ptr + 2 * t * n, margin, FLOOR_)
            if t < 2:
                term += (1.0 - sample_weight) * center * hinge
            elif t == 2 or SYMMETRIC:
                term += sample_weight / n * hinge
            else:
                term += sample_weight * center * hinge
        tl.store(terms_ptr + i, 0.5 * term, mask=i < n)
        blocks = tl.num_programs(0)
        reduce_rows(terms_ptr, loss_ptr, counter_ptr + blocks, 1.0, n, blocks, ROWS)


def mine(
    feat_v: Tensor, feat_i: Tensor, labels: Tensor, margin: float, sample_weight: float, symmetric: bool, out: tuple
) -> None:
    """Loss and partners of at most SMALL contiguous rows, into what the op allocated."""
    (n, d), loss, launch = feat_v.shape, out[0], center_launch(len(feat_v))
    grid = triton.cdiv(n, ANCHORS), triton.cdiv(d, COLUMNS)
    work = loss.new_empty(*grid, 4, BLOCK_D, launch["ROWS"])
    parts = loss.new_empty(*grid, 4, ANCHORS, launch["ROWS"])
    with torch.cuda.device_of(feat_v):
        _forward_kernel[grid](
            feat_v, feat_i, labels, work, parts, loss.new_empty(n), counters(feat_v), *out, n, d, margin, sample_weight,
            SYMMETRIC=symmetric, FLOOR_=FLOOR, PRECISION=PRECISION, ANCHORS=ANCHORS, COLUMNS=COLUMNS, **launch,
        )  # fmt: skip


@triton.jit
def _strengths(dist_ptr, weight, j, n, margin, out_ptr, FLOOR_: tl.constexpr):
    """How hard anchors j pull at their positives and, after len(j), at their negatives in one term."""
    d_pos = tl.load(dist_ptr + j, mask=j < n, other=0.0)
    d_neg = tl.load(dist_ptr + n + j, mask=j < n, other=1.0)
    weight = tl.where((j < n) & (d_pos - d_neg + margin > 0.0), weight, 0.0)
    pos = tl.where((weight == 0.0) | (d_pos * d_pos <= FLOOR_ * 1.0001), 0.0, weight / d_pos)
    neg = tl.where((weight == 0.0) | (d_neg * d_neg <= FLOOR_ * 1.0001), 0.0, weight / d_neg)
    tl.store(out_ptr + j, pos)
    tl.store(out_ptr + j.shape[0] + j, neg)


@triton.jit
def _pulls(strength_ptr, index_ptr, j, m, n, TERM: tl.constexpr, AXIS: tl.constexpr, ROWS: tl.constexpr):
    """How hard anchors and their partners pull at each other in one term: [j, m], j the anchors, or m for AXIS 0."""
    anchor, partner = j if AXIS == 1 else m, m if AXIS == 1 else j
    strength_ptr += 2 * TERM * ROWS
    index_ptr += 2 * TERM * n
    pos = tl.expand_dims(tl.load(strength_ptr + anchor), AXIS)
    neg = tl.expand_dims(tl.load(strength_ptr + ROWS + anchor), AXIS)
    i_pos = tl.expand_dims(tl.load(index_ptr + anchor, mask=anchor < n, other=-1).to(tl.int32), AXIS)
    i_neg = tl.expand_dims(tl.load(index_ptr + n + anchor, mask=anchor < n, other=-1).to(tl.int32), AXIS)
    other = tl.expand_dims(partner, 1 - AXIS)
    return tl.where(other == i_pos, pos, 0.0) - tl.where(other == i_neg, neg, 0.0)


@triton.jit
def _side(
    x_ptr, other_ptr, c_own, c_other, g_own, strength_ptr, index_ptr, labels_ptr, to_ptr, origin, once, j, k, col,
    n, n_cols, OWN: tl.constexpr, SYMMETRIC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of the rows x of modality OWN: through its centers in terms 0, 1 and 3 - OWN, and itself in 2 + OWN."""
    ROWS: tl.constexpr = j.shape[0]
    SAMPLE: tl.constexpr = 1 if OWN == 0 or SYMMETRIC else 0  # its samples are the anchors of term 2 + OWN
    CENTER: tl.constexpr = 1 if OWN == 0 and not SYMMETRIC else 0  # its centers are the anchors of term 3 - OWN
    to_c = tl.zeros((ROWS, BLOCK_D), tl.float32)
    to_f = tl.zeros((ROWS, BLOCK_D), tl.float32)
    at_c = tl.zeros((ROWS,), tl.float32)
    at_f = tl.zeros((ROWS,), tl.float32)
    for start in range(0, n, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        center = tl.load(c_other + m[:, None] * BLOCK_D + k[None, :])
        s = _pulls(strength_ptr, index_ptr, j, m, n, OWN, 1, ROWS)
        s += _pulls(strength_ptr, index_ptr, j, m, n, 1 - OWN, 0, ROWS)
        at_c += tl.sum(s, 1)
        to_c = tl.dot(s, center, to_c, input_precision=PRECISION)
        s = _pulls(strength_ptr, index_ptr, j, m, n, 2 + OWN, SAMPLE, ROWS)
        at_f += tl.sum(s, 1)
        to_f = tl.dot(s, center, to_f, input_precision=PRECISION)
        s = _pulls(strength_ptr, index_ptr, j, m, n, 3 - OWN, CENTER, ROWS)
        at_c += tl.sum(s, 1)
        sample = finite(moved_rows(other_ptr, origin, m, col, n, n_cols))
        to_c = tl.dot(s, sample, to_c, input_precision=PRECISION)
    at = j[:, None] * BLOCK_D + k[None, :]
    tl.store(g_own + at, at_c[:, None] * tl.load(c_own + at) - to_c)
    to_f = at_f[:, None] * finite(moved_rows(x_ptr, origin, j, col, n, n_cols)) - to_f
    tl.debug_barrier()
    nothing = tl.zeros((BLOCK_D,), tl.float32)
    to_f += center_rows(g_own, nothing, labels_ptr, once, j, k, n, BLOCK_D, PRECISION, BLOCK_M)
    out = j[:, None].to(tl.int64) * n_cols + col[None, :]
    tl.store(to_ptr + out, to_f, mask=(j[:, None] < n) & (col[None, :] < n_cols))


@triton.jit
def _backward_kernel(
    grad_ptr, dist_ptr, index_ptr, v_ptr, i_ptr, labels_ptr, work_ptr, to_v_ptr, to_i_ptr, n, n_cols, margin,
    sample_weight, SYMMETRIC: tl.constexpr, FLOOR_: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """work [programs, 3 * BLOCK_D + 8, ROWS]: centers, gradient of one modality's, how hard anchors pull."""
    j = tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK_D)
    col = tl.program_id(0) * BLOCK_D + k
    origin = load_origin(v_ptr, col, n_cols)
    once = center_shares(labels_ptr, j, n, BLOCK_M)
    own = tl.program_id(0) * 2 + tl.program_id(1)
    c_v = work_ptr + own * ((3 * BLOCK_D + 8) * ROWS)
    c_i = c_v + ROWS * BLOCK_D
    g = c_i + ROWS * BLOCK_D
    strengths = g + ROWS * BLOCK_D
    at = j[:, None] * BLOCK_D + k[None, :]
    # No pull comes from or goes to a row that is not finite.
    tl.store(c_v + at, finite(center_rows(v_ptr, origin, labels_ptr, once, j, col, n, n_cols, PRECISION, BLOCK_M)))
    tl.store(c_i + at, finite(center_rows(i_ptr, origin, labels_ptr, once, j, col, n, n_cols, PRECISION, BLOCK_M)))
    grad = 0.5 * tl.load(grad_ptr)
    center = grad * once / tl.sum(once, 0)
    for t in tl.static_range(4):
        if t < 2:
            weight = (1.0 - sample_weight) * center
        elif t == 2 or SYMMETRIC:
            weight = tl.where(j < n, sample_weight * grad / n, 0.0)
        else:
            weight = sample_weight * center
        _strengths(dist_ptr + 2 * t * n, weight, j, n, margin, strengths + 2 * t * ROWS, FLOOR_)
    tl.debug_barrier()
    if tl.program_id(1) == 0:
        _side(v_ptr, i_ptr, c_v, c_i, g, strengths, index_ptr, labels_ptr, to_v_ptr, origin, once, j, k, col,
              n, n_cols, 0, SYMMETRIC, PRECISION, BLOCK_M, BLOCK_D)  # fmt: skip
    else:
        _side(i_ptr, v_ptr, c_i, c_v, g, strengths, index_ptr, labels_ptr, to_i_ptr, origin, once, j, k, col,
              n, n_cols, 1, SYMMETRIC, PRECISION, BLOCK_M, BLOCK_D)  # fmt: skip


def pull(
    grad: Tensor,
    dist: Tensor,
    index: Tensor,
    feat_v: Tensor,
    feat_i: Tensor,
    labels: Tensor,
    margin: float,
    sample_weight: float,
    symmetric: bool,
    out: tuple,
) -> None:
    """Gradients of at most SMALL contiguous rows, into what the op allocated."""
    (n, d), launch = feat_v.shape, center_launch(len(feat_v))
    grid = triton.cdiv(d, BLOCK_D), 2
    work = dist.new_empty(*grid, 3 * BLOCK_D + 8, launch["ROWS"])
    with torch.cuda.device_of(feat_v):
        _backward_kernel[grid](
            grad, dist, index, feat_v, feat_i, labels, work, *out, n, d, margin, sample_weight,
            SYMMETRIC=symmetric, FLOOR_=FLOOR, PRECISION=PRECISION, **launch,
        )  # fmt: skip
