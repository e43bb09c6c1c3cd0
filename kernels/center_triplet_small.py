"""Triton kernels of center_triplet for few rows: one launch forward and one backward.

Centers are a product: c = M f with M[i, j] = 1 / count of the identity that i and j share, 0 elsewhere; M is symmetric.

Forward, a program takes the anchors of one sample: it reads all rows once, makes the centers of a block of columns from
them, and adds up the squares of direct differences, so nothing cancels and no winner has to be found again. The last
program to finish adds the terms up in order. Backward, the gradient of both modalities is linear in the rows,

    dv = C_vv v + C_vi i     di = C_vi' v + C_ii i

with [n, n] coefficients that follow from partners and distances alone; each program makes them again for its columns.
Both work in numbers relative to a row, which moves no distance and no gradient. More than CENTERED rows would spill
registers, and the product of a program's centers grows with their square.
"""

import torch
from torch import Tensor

from vifast.kernels._lang import tl, triton
from vifast.kernels._small import counters, last_program
from vifast.kernels._tile import input_precision
from vifast.kernels.batch_hard import FLOOR

PRECISION = input_precision("exact")


@triton.jit
def _sharing(labels_ptr, j, n):
    """M, and 1 / count of every sample."""
    label = tl.load(labels_ptr + j, mask=j < n, other=0)
    same = (label[:, None] == label[None, :]) & (j[:, None] < n) & (j[None, :] < n)
    once = 1.0 / tl.maximum(tl.sum(same.to(tl.float32), 1), 1.0)
    return tl.where(same, once[:, None], 0.0), tl.where(j < n, once, 0.0)


@triton.jit
def _finite(x):
    return tl.where(tl.abs(x) <= 3.4028234e38, x, 0.0)


@triton.jit
def _rows(x_ptr, origin, j, col, n, n_cols):
    """Rows less the origin."""
    mask = (j[:, None] < n) & (col[None, :] < n_cols)
    x = tl.load(x_ptr + j[:, None].to(tl.int64) * n_cols + col[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, x - origin[None, :], 0.0)


@triton.jit
def _origin(x_ptr, row, col, n_cols):
    return _finite(tl.load(x_ptr + tl.cast(row, tl.int64) * n_cols + col, mask=col < n_cols, other=0.0).to(tl.float32))


@triton.jit
def _centers(share, x, PRECISION: tl.constexpr):
    """M x. A row that is not finite spoils the center of its own identity alone."""
    kept = _finite(x)
    bad = tl.max((kept != x).to(tl.float32), 1)
    spoiled = tl.max(tl.where(share > 0.0, bad[None, :], 0.0), 1)
    center = tl.dot(share, kept, input_precision=PRECISION)
    return tl.where(spoiled[:, None] > 0.0, float("nan"), center)


@triton.jit
def _one(x, j, i):
    """Row i of a tile."""
    return tl.sum(tl.where(j[:, None] == i, x, 0.0), 0)[None, :]


@triton.jit
def _sq(a, b):
    return tl.sum((a - b) * (a - b), 1)


@triton.jit
def _mine(sq, same, inside, j, i, n, dist_ptr, index_ptr, margin, FLOOR_: tl.constexpr):
    """Farthest positive and nearest negative of sample i, stored, and their hinge. The lower index wins a tie."""
    broken = sq != sq  # noqa: PLR0124 - a NaN is partner on both sides
    positive = inside & same
    negative = inside & (same == 0)
    far = tl.where(positive, tl.where(broken, float("inf"), sq), float("-inf"))
    near = tl.where(negative, tl.where(broken, float("-inf"), sq), float("inf"))
    best = tl.max(far, 0)
    i_pos = tl.min(tl.where(positive & (far == best), j, n), 0)
    least = tl.min(near, 0)
    i_neg = tl.min(tl.where(negative & (near == least), j, n), 0)
    sq_pos = tl.sum(tl.where(j == i_pos, sq, 0.0), 0)
    sq_neg = tl.sum(tl.where(j == i_neg, sq, 0.0), 0)
    d_pos = tl.sqrt_rn(tl.where(sq_pos < FLOOR_, FLOOR_, sq_pos))
    d_neg = tl.where(i_neg == n, float("inf"), tl.sqrt_rn(tl.where(sq_neg < FLOOR_, FLOOR_, sq_neg)))
    tl.store(dist_ptr + i, d_pos)
    tl.store(dist_ptr + n + i, d_neg)
    tl.store(index_ptr + i, i_pos.to(tl.int64))
    tl.store(index_ptr + n + i, tl.where(i_neg == n, -1, i_neg).to(tl.int64))
    gap = d_pos - d_neg + margin
    return tl.where(gap < 0.0, 0.0, gap)


@triton.jit
def _forward_kernel(
    v_ptr, i_ptr, labels_ptr, terms_ptr, counter_ptr, loss_ptr, dist_ptr, index_ptr, n, n_cols, margin, sample_weight,
    SYMMETRIC: tl.constexpr, FLOOR_: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    share, once = _sharing(labels_ptr, j, n)
    v_to_c = tl.zeros((BLOCK,), tl.float32)
    last = tl.zeros((BLOCK,), tl.float32)
    cv_to_c = tl.zeros((BLOCK,), tl.float32)
    ci_to_c = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK_D):
        col = start + tl.arange(0, BLOCK_D)
        origin = _origin(v_ptr, i, col, n_cols)
        f_v = _rows(v_ptr, origin, j, col, n, n_cols)
        f_i = _rows(i_ptr, origin, j, col, n, n_cols)
        c_v = _centers(share, f_v, PRECISION)
        c_i = _centers(share, f_i, PRECISION)
        cv_to_c += _sq(_one(c_v, j, i), c_i)
        ci_to_c += _sq(_one(c_i, j, i), c_v)
        v_to_c += _sq(_one(f_v, j, i), c_i)
        if SYMMETRIC:
            last += _sq(_one(f_i, j, i), c_v)
        else:
            last += _sq(_one(c_v, j, i), f_i)
    inside = j < n
    same = tl.load(labels_ptr + j, mask=inside, other=0) == tl.load(labels_ptr + i)
    center = tl.sum(tl.where(j == i, once, 0.0), 0) / tl.sum(once, 0)  # weight of a center beside sample i
    sample = 1.0 / n
    side = 2 * n
    t = _mine(cv_to_c, same, inside, j, i, n, dist_ptr, index_ptr, margin, FLOOR_)
    t += _mine(ci_to_c, same, inside, j, i, n, dist_ptr + side, index_ptr + side, margin, FLOOR_)
    t *= (1.0 - sample_weight) * center
    f = _mine(v_to_c, same, inside, j, i, n, dist_ptr + 2 * side, index_ptr + 2 * side, margin, FLOOR_) * sample
    f += _mine(last, same, inside, j, i, n, dist_ptr + 3 * side, index_ptr + 3 * side, margin, FLOOR_) * (
        sample if SYMMETRIC else center
    )
    tl.store(terms_ptr + i, 0.5 * (t + sample_weight * f))
    if last_program(counter_ptr, n):
        tl.store(loss_ptr, tl.sum(tl.load(terms_ptr + j, mask=inside, other=0.0), 0))


def mine(
    feat_v: Tensor, feat_i: Tensor, labels: Tensor, margin: float, sample_weight: float, symmetric: bool, out: tuple
) -> None:
    """Loss and partners of at most CENTERED contiguous rows, into what the op allocated."""
    (n, d), loss = feat_v.shape, out[0]
    with torch.cuda.device_of(feat_v):
        _forward_kernel[(n,)](
            feat_v, feat_i, labels, loss.new_empty(n), counters(feat_v), *out, n, d, margin, sample_weight,
            SYMMETRIC=symmetric, FLOOR_=FLOOR, PRECISION=PRECISION, **_launch(n),
        )  # fmt: skip


def _launch(n: int) -> dict[str, int]:
    return {"BLOCK": max(16, triton.next_power_of_2(n)), "BLOCK_D": 32, "num_warps": 4 if n <= 16 else 8}


@triton.jit
def _pulls(dist_ptr, index_ptr, weight, j, n, margin, FLOOR_: tl.constexpr):
    """S[anchor, partner]: how hard an anchor and its partners pull at each other in one term."""
    d_pos = tl.load(dist_ptr + j, mask=j < n, other=0.0)
    d_neg = tl.load(dist_ptr + n + j, mask=j < n, other=1.0)
    i_pos = tl.load(index_ptr + j, mask=j < n, other=-1)
    i_neg = tl.load(index_ptr + n + j, mask=j < n, other=-1)
    weight = tl.where((j < n) & (d_pos - d_neg + margin > 0.0), weight, 0.0)
    pos = tl.where((weight == 0.0) | (d_pos * d_pos <= FLOOR_ * 1.0001), 0.0, weight / d_pos)
    neg = tl.where((weight == 0.0) | (d_neg * d_neg <= FLOOR_ * 1.0001), 0.0, weight / d_neg)
    pulls = tl.where(j[None, :] == i_pos[:, None], pos[:, None], 0.0)
    return pulls - tl.where(j[None, :] == i_neg[:, None], neg[:, None], 0.0)


@triton.jit
def _shared(share, weight):
    """M diag(weight) M."""
    return share * tl.sum(share * weight[None, :], 1)[:, None]


@triton.jit
def _backward_kernel(
    grad_ptr, dist_ptr, index_ptr, v_ptr, i_ptr, labels_ptr, to_v_ptr, to_i_ptr, n, n_cols, margin, sample_weight,
    SYMMETRIC: tl.constexpr, FLOOR_: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    j = tl.arange(0, BLOCK)
    share, once = _sharing(labels_ptr, j, n)
    grad = 0.5 * tl.load(grad_ptr)
    center = once / tl.sum(once, 0)
    sample = tl.where(j < n, 1.0 / n, 0.0)
    side = 2 * n
    of_centers = grad * (1.0 - sample_weight) * center
    of_samples = grad * sample_weight
    cv_to_c = _pulls(dist_ptr, index_ptr, of_centers, j, n, margin, FLOOR_)
    ci_to_c = _pulls(dist_ptr + side, index_ptr + side, of_centers, j, n, margin, FLOOR_)
    v_to_c = _pulls(dist_ptr + 2 * side, index_ptr + 2 * side, of_samples * sample, j, n, margin, FLOOR_)
    last = _pulls(
        dist_ptr + 3 * side, index_ptr + 3 * side, of_samples * (sample if SYMMETRIC else center), j, n, margin, FLOOR_
    )
    # Pulls at the centers and at the samples of each modality, and between the two modalities.
    at_cv = tl.sum(cv_to_c, 1) + tl.sum(ci_to_c, 0)
    at_ci = tl.sum(cv_to_c, 0) + tl.sum(ci_to_c, 1) + tl.sum(v_to_c, 0)
    between = tl.dot(share, cv_to_c + tl.trans(ci_to_c), input_precision=PRECISION) + v_to_c
    between = tl.dot(between, share, input_precision=PRECISION)
    if SYMMETRIC:
        at_cv += tl.sum(last, 0)
        at_i = tl.sum(last, 1)
        between += tl.dot(share, tl.trans(last), input_precision=PRECISION)
    else:
        at_cv += tl.sum(last, 1)
        at_i = tl.sum(last, 0)
        between += tl.dot(share, last, input_precision=PRECISION)
    own = j[:, None] == j[None, :]
    of_v = _shared(share, at_cv) + tl.where(own, tl.sum(v_to_c, 1)[:, None], 0.0)
    of_i = _shared(share, at_ci) + tl.where(own, at_i[:, None], 0.0)
    col = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    origin = _origin(v_ptr, 0, col, n_cols)
    # No pull comes from or goes to a row that is not finite.
    f_v = _finite(_rows(v_ptr, origin, j, col, n, n_cols))
    f_i = _finite(_rows(i_ptr, origin, j, col, n, n_cols))
    mask = (j[:, None] < n) & (col[None, :] < n_cols)
    at = j[:, None].to(tl.int64) * n_cols + col[None, :]
    to_v = tl.dot(of_v, f_v, input_precision=PRECISION) - tl.dot(between, f_i, input_precision=PRECISION)
    tl.store(to_v_ptr + at, to_v, mask=mask)
    to_i = tl.dot(of_i, f_i, input_precision=PRECISION) - tl.dot(tl.trans(between), f_v, input_precision=PRECISION)
    tl.store(to_i_ptr + at, to_i, mask=mask)


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
    """Gradients of at most CENTERED contiguous rows, into what the op allocated."""
    (n, d), launch = feat_v.shape, _launch(len(feat_v))
    with torch.cuda.device_of(feat_v):
        _backward_kernel[(triton.cdiv(d, launch["BLOCK_D"]),)](
            grad, dist, index, feat_v, feat_i, labels, *out, n, d, margin, sample_weight,
            SYMMETRIC=symmetric, FLOOR_=FLOOR, PRECISION=PRECISION, **launch,
        )  # fmt: skip
