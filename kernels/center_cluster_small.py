"""Triton kernels of center_cluster for few rows: one launch forward and one backward, see ``_centers``.

Forward, a program adds up squares over its COLUMNS: of every row less its center, and of the direct differences of the
centers beside ANCHORS rows to all others. The last program of the same anchors sums over the columns, and the last of
those adds the terms up in order. Backward, a program has BLOCK_D columns of the gradient; the mean over an identity is
its own adjoint.
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


@triton.jit
def _pairs(once):
    """Ordered pairs of identities, at least 1."""
    identities = tl.floor(tl.sum(once, 0) + 0.5)
    return tl.maximum(identities * (identities - 1.0), 1.0)


@triton.jit
def _steps(x_ptr, origin, center, once, j, col, n, n_cols):
    """Rows less their centers. A row alone is its own, whatever the bits of a product."""
    x = moved_rows(x_ptr, origin, j, col, n, n_cols)
    return x - tl.where(once[:, None] == 1.0, x, center)


@triton.jit
def _forward_kernel(
    x_ptr, labels_ptr, work_ptr, parts_ptr, terms_ptr, counter_ptr, loss_ptr, own_ptr, dist_ptr, n, n_cols, margin,
    FLOOR_: tl.constexpr, PRECISION: tl.constexpr, ANCHORS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """work [programs, BLOCK_D, ROWS]: centers of some columns; parts [programs, ANCHORS + 1, ROWS]."""
    local = tl.arange(0, ANCHORS)
    i = tl.program_id(0) * ANCHORS + local
    j = tl.arange(0, ROWS)
    once = center_shares(labels_ptr, j, n, BLOCK_M)
    part = tl.program_id(0) * tl.num_programs(1)
    c_ptr = work_ptr + (part + tl.program_id(1)) * (BLOCK_D * ROWS)
    apart = tl.zeros((ANCHORS, ROWS), tl.float32)
    own = tl.zeros((ROWS,), tl.float32)
    first = tl.program_id(1) * COLUMNS
    for start in range(first, tl.minimum(first + COLUMNS, n_cols), BLOCK_D):
        k = tl.arange(0, BLOCK_D)
        col = start + k
        origin = load_origin(x_ptr, col, n_cols)
        center = center_rows(x_ptr, origin, labels_ptr, once, j, col, n, n_cols, PRECISION, BLOCK_M)
        tl.store(c_ptr + k[None, :] * ROWS + j[:, None], center)
        step = _steps(x_ptr, origin, center, once, j, col, n, n_cols)
        own += tl.sum(step * step, 1)
        tl.debug_barrier()
        for column in range(0, tl.minimum(BLOCK_D, n_cols - start)):
            apart += square_column(c_ptr, c_ptr, column, i, j, ROWS)
        tl.debug_barrier()
    size: tl.constexpr = (ANCHORS + 1) * ROWS
    pair = local[:, None] * ROWS + j[None, :]
    part_ptr = parts_ptr + (part + tl.program_id(1)) * size
    tl.store(part_ptr + pair, apart)
    tl.store(part_ptr + ANCHORS * ROWS + j, own)
    if last_program(counter_ptr + tl.program_id(0), tl.num_programs(1)):
        sq = tl.zeros((ANCHORS, ROWS), tl.float32)
        square = tl.zeros((ANCHORS,), tl.float32)
        for chunk in range(0, tl.num_programs(1)):
            part_ptr = parts_ptr + (part + chunk) * size
            sq += tl.load(part_ptr + pair)
            square += tl.load(part_ptr + ANCHORS * ROWS + i)
        d = tl.sqrt_rn(tl.where(sq < FLOOR_, FLOOR_, sq))
        r = tl.sqrt_rn(square)
        inside = (i[:, None] < n) & (j[None, :] < n)
        tl.store(dist_ptr + i[:, None] * n + j[None, :], d, mask=inside)
        tl.store(own_ptr + i, r, mask=i < n)
        others = inside & (sharing(labels_ptr, i, j, n) == 0.0) & (finite(d) == d)
        hinge = tl.where(others, tl.maximum(tl.cast(margin, tl.float32) - d, 0.0), 0.0)
        push = center_shares(labels_ptr, i, n, BLOCK_M) * tl.sum(hinge * once[None, :], 1)
        tl.store(terms_ptr + i, r / n + push / _pairs(once), mask=i < n)
        blocks = tl.num_programs(0)
        reduce_rows(terms_ptr, loss_ptr, counter_ptr + blocks, 1.0, n, blocks, ROWS)


def gather(x: Tensor, labels: Tensor, margin: float, loss: Tensor, own: Tensor, dist: Tensor) -> None:
    """Loss, distances of rows to their centers and of centers, of at most SMALL contiguous rows."""
    (n, d), launch = x.shape, center_launch(len(x))
    grid = triton.cdiv(n, ANCHORS), triton.cdiv(d, COLUMNS)
    work = loss.new_empty(*grid, BLOCK_D, launch["ROWS"])
    parts = loss.new_empty(*grid, ANCHORS + 1, launch["ROWS"])
    with torch.cuda.device_of(x):
        _forward_kernel[grid](
            x, labels, work, parts, loss.new_empty(n), counters(x), loss, own, dist, n, d, margin, FLOOR_=FLOOR,
            PRECISION=PRECISION, ANCHORS=ANCHORS, COLUMNS=COLUMNS, **launch,
        )  # fmt: skip


@triton.jit
def _backward_kernel(
    grad_ptr, own_ptr, dist_ptr, x_ptr, labels_ptr, work_ptr, to_ptr, n, n_cols, margin, FLOOR_: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """work [programs, 2, ROWS, BLOCK_D]: centers and their gradients. Nothing pulls a row that is not finite."""
    j = tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK_D)
    col = tl.program_id(0) * BLOCK_D + k
    origin = load_origin(x_ptr, col, n_cols)
    once = center_shares(labels_ptr, j, n, BLOCK_M)
    c_ptr = work_ptr + tl.program_id(0) * (2 * ROWS * BLOCK_D)
    g_ptr = c_ptr + ROWS * BLOCK_D
    at = j[:, None] * BLOCK_D + k[None, :]
    center = finite(center_rows(x_ptr, origin, labels_ptr, once, j, col, n, n_cols, PRECISION, BLOCK_M))
    tl.store(c_ptr + at, center)
    grad = tl.load(grad_ptr)
    own = tl.load(own_ptr + j, mask=j < n, other=0.0)
    moves = (own > 0.0) & (finite(own) == own)
    pull = tl.where(moves, grad / n / tl.where(moves, own, 1.0), 0.0)
    step = finite(pull[:, None] * _steps(x_ptr, origin, center, once, j, col, n, n_cols))
    push = -2.0 * grad / _pairs(once)
    tl.debug_barrier()
    total = tl.zeros((ROWS,), tl.float32)
    pulled = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, n, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        inside = (j[:, None] < n) & (m[None, :] < n)
        d = tl.load(dist_ptr + j[:, None] * n + m[None, :], mask=inside, other=1.0)
        near = inside & (d < tl.cast(margin, tl.float32)) & (d * d > FLOOR_ * 1.0001)
        near = near & (sharing(labels_ptr, j, m, n) == 0.0)
        other = center_shares(labels_ptr, m, n, BLOCK_M)
        s = tl.where(near, push * once[:, None] * other[None, :] / d, 0.0)
        total += tl.sum(s, 1)
        pulled = tl.dot(s, tl.load(c_ptr + m[:, None] * BLOCK_D + k[None, :]), pulled, input_precision=PRECISION)
    tl.store(g_ptr + at, total[:, None] * center - pulled - step)
    tl.debug_barrier()
    nothing = tl.zeros((BLOCK_D,), tl.float32)
    step += center_rows(g_ptr, nothing, labels_ptr, once, j, k, n, BLOCK_D, PRECISION, BLOCK_M)
    out = j[:, None].to(tl.int64) * n_cols + col[None, :]
    tl.store(to_ptr + out, step, mask=(j[:, None] < n) & (col[None, :] < n_cols))


def pull(grad: Tensor, own: Tensor, dist: Tensor, x: Tensor, labels: Tensor, margin: float, out: Tensor) -> None:
    """Gradient of at most SMALL contiguous rows, into what the op allocated."""
    (n, d), launch = x.shape, center_launch(len(x))
    grid = (triton.cdiv(d, BLOCK_D),)
    work = own.new_empty(*grid, 2, launch["ROWS"], BLOCK_D)
    with torch.cuda.device_of(x):
        _backward_kernel[grid](
            grad, own, dist, x, labels, work, out, n, d, margin, FLOOR_=FLOOR, PRECISION=PRECISION, **launch
        )
