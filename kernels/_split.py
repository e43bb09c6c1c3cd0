"""Squared distances of few rows in one launch: the columns are split among programs, and the last adds them up.

A program for all columns of its anchors would leave all but a few multiprocessors idle and take D / BLOCK_K steps one
after the other. Here it takes COLUMNS of them, and leaves the products of its ANCHORS with all partners to the last
one, which adds up in order. With all partners in the tile their mean costs nothing.
"""

import torch
from torch import Tensor

from vifast.kernels._lang import tl, triton
from vifast.kernels._tile import CLOSE_PAIR, finite, input_precision, sqdist_of_products

ANCHORS, COLUMNS = 16, 128  # of a program: 128 programs for 128 rows of 2048


@triton.jit
def length(norm, LEAST: tl.constexpr):
    return tl.where(norm < LEAST, LEAST, norm)  # a NaN stays


@triton.jit
def mean_free_rows(x_ptr, row, k, n, n_cols, norm_ptr=None, LEAST: tl.constexpr = 0.0, CENTER: tl.constexpr = True):
    """Rows, or unit rows, less the mean of their finite entries, 0 beyond n and n_cols; and the mean, if any."""
    mask = (row[:, None] < n) & (k[None, :] < n_cols)
    x = tl.load(x_ptr + row[:, None] * n_cols + k[None, :], mask=mask, other=0.0).to(tl.float32)
    if norm_ptr is not None:
        x *= (1.0 / length(tl.load(norm_ptr + row, mask=row < n, other=1.0), LEAST))[:, None]
    mean = tl.zeros((k.shape[0],), tl.float32)
    if CENTER:
        count = tl.sum((mask & (finite(x) == x)).to(tl.float32), 0)
        mean = finite(tl.sum(finite(x), 0) / tl.maximum(count, 1.0))
    return tl.where(mask, x - mean[None, :], 0.0), mean


@triton.jit
def _part(parts_ptr, chunk, ANCHORS: tl.constexpr, PARTNERS: tl.constexpr):
    """What program (block of anchors, chunk of columns) stores: products, squares of anchors, squares of partners."""
    at = tl.program_id(0) * tl.num_programs(1) + chunk
    products = parts_ptr + at * (ANCHORS * PARTNERS + ANCHORS + PARTNERS)
    return products, products + ANCHORS * PARTNERS, products + ANCHORS * PARTNERS + ANCHORS


@triton.jit
def store_products(
    x_ptr, y_ptr, parts_ptr, anchor, partner, n, m, n_cols,
    PRECISION: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr, CENTER: tl.constexpr = True,
):  # fmt: skip
    """Products and squares of x[anchor] and y[partner] over this program's columns, all less the partners' mean.

    Rows that ``sum_products`` divides by their norms stay as they are: the mean of unit rows is not known yet.

    Partners lie along the rows of the product, where there are warps for all of them.
    """
    dot = tl.zeros((partner.shape[0], anchor.shape[0]), tl.float32)
    sq_x = tl.zeros((anchor.shape[0],), tl.float32)
    sq_y = tl.zeros((partner.shape[0],), tl.float32)
    for start in range(0, COLUMNS, BLOCK_K):
        k = tl.program_id(1) * COLUMNS + start + tl.arange(0, BLOCK_K)
        y, mean = mean_free_rows(y_ptr, partner, k, m, n_cols, None, 0.0, CENTER)
        mask = (anchor[:, None] < n) & (k[None, :] < n_cols)
        x = tl.load(x_ptr + anchor[:, None] * n_cols + k[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, x - mean[None, :], 0.0)
        dot = tl.dot(y, tl.trans(x), dot, input_precision=PRECISION)
        sq_x += tl.sum(x * x, 1)
        sq_y += tl.sum(y * y, 1)
    products, squares_x, squares_y = _part(parts_ptr, tl.program_id(1), anchor.shape[0], partner.shape[0])
    i = tl.arange(0, anchor.shape[0])
    tl.store(products + i[None, :] * partner.shape[0] + partner[:, None], dot)
    tl.store(squares_x + i, sq_x)
    tl.store(squares_y + partner, sq_y)


@triton.jit
def sum_products(
    x_ptr, y_ptr, parts_ptr, anchor, partner, n, m, n_cols, CLOSE: tl.constexpr, SAME: tl.constexpr,
    norm_ptr=None, LEAST: tl.constexpr = 0.0,
):  # fmt: skip
    """Squared distances [len(anchor), len(partner)] from what the programs of these anchors stored.

    With norm_ptr those of unit rows, and the norms of the anchors are stored there.
    """
    dot = tl.zeros((anchor.shape[0], partner.shape[0]), tl.float32)
    sq_x = tl.zeros((anchor.shape[0],), tl.float32)
    sq_y = tl.zeros((partner.shape[0],), tl.float32)
    i = tl.arange(0, anchor.shape[0])
    for chunk in range(0, tl.num_programs(1)):
        products, squares_x, squares_y = _part(parts_ptr, chunk, anchor.shape[0], partner.shape[0])
        dot += tl.load(products + i[:, None] * partner.shape[0] + partner[None, :])
        sq_x += tl.load(squares_x + i)
        sq_y += tl.load(squares_y + partner)
    if norm_ptr is None:
        return sqdist_of_products(dot, sq_x, sq_y, x_ptr, y_ptr, anchor, partner, n, m, n_cols, CLOSE, SAME)
    else:
        norm = tl.sqrt_rn(sq_x)
        tl.store(norm_ptr + anchor, norm, mask=anchor < n)
        to_x = 1.0 / length(norm, LEAST)
        to_y = 1.0 / length(tl.sqrt_rn(sq_y), LEAST)
        dot *= to_x[:, None] * to_y[None, :]  # first the two: a graph has the same bits both ways
        sq_x = sq_x * to_x * to_x
        sq_y = sq_y * to_y * to_y
        return sqdist_of_products(dot, sq_x, sq_y, x_ptr, y_ptr, anchor, partner, n, m, n_cols, CLOSE, SAME, to_x, to_y)


@triton.jit
def _unit_square(norm, LEAST: tl.constexpr):
    share = norm / length(norm, LEAST)  # 1, but for a row too short to be divided
    return share * share


@triton.jit
def pull_rows(
    s, x_ptr, out_ptr, row, partner, k, n, n_cols, PRECISION: tl.constexpr,
    norm_ptr=None, sq=None, LEAST: tl.constexpr = 0.0, own_ptr=None, n_own=None,
):  # fmt: skip
    """Columns k of out_i = sum_j s_ij (x_i - x_j), s [len(row), len(partner)]. They lie along the product's rows.

    With own_ptr the x_i are its n_own rows. An entry that is not finite counts as 0: s says what such a row spoils.

    With norm_ptr x are unit rows, and out is the gradient of the rows behind them: of dU_i = sum_j s_ij (u_i - u_j) the
    part along u_i, sum_j s_ij (|u_i|^2 - <u_i, u_j>), follows from the squared distances sq.
    """
    x, mean = mean_free_rows(x_ptr, partner, k, n, n_cols, norm_ptr, LEAST)
    pulled = tl.dot(tl.trans(finite(x)), tl.trans(s), input_precision=PRECISION)
    if own_ptr is None:
        own_ptr = x_ptr
        n_own = n
    mask = (k[:, None] < n_cols) & (row[None, :] < n_own)
    at = row[None, :] * n_cols + k[:, None]
    own = finite(tl.load(own_ptr + at, mask=mask, other=0.0).to(tl.float32))
    if norm_ptr is None:
        tl.store(out_ptr + at, tl.sum(s, 1)[None, :] * (own - mean[:, None]) - pulled, mask=mask)
    else:
        norm = tl.load(norm_ptr + row, mask=row < n, other=1.0)
        other = tl.load(norm_ptr + partner, mask=partner < n, other=1.0)
        twice = sq + (_unit_square(norm, LEAST)[:, None] - _unit_square(other, LEAST)[None, :])
        along = 0.5 * tl.sum(s * twice, 1)
        per = 1.0 / length(norm, LEAST)
        own *= per[None, :]
        step = tl.sum(s, 1)[None, :] * (own - mean[:, None]) - pulled - along[None, :] * own
        tl.store(out_ptr + at, step * per[None, :], mask=mask)


def split_launch(x: Tensor, y: Tensor, precision: str) -> tuple[tuple[int, int], Tensor, dict]:
    """Grid, room for the parts, and constants of a kernel that stores and sums products. 16 partners a warp."""
    (n, d), partners = x.shape, max(16, triton.next_power_of_2(len(y)))
    grid = triton.cdiv(n, ANCHORS), max(1, triton.cdiv(d, COLUMNS))
    parts = x.new_empty(*grid, ANCHORS * partners + ANCHORS + partners, dtype=torch.float32)
    constants = {
        "CLOSE": CLOSE_PAIR, "PRECISION": input_precision(precision), "ANCHORS": ANCHORS, "PARTNERS": partners,
        "COLUMNS": COLUMNS, "BLOCK_K": 32, "num_warps": partners // 16, "num_stages": 2,
    }  # fmt: skip
    return grid, parts, constants


def pull_launch(x: Tensor, precision: str) -> tuple[tuple[int, int], dict]:
    """Grid and constants of a kernel whose programs pull ANCHORS rows in BLOCK_D columns each.

    128 columns would take 144 KiB of shared memory, which an sm_86 does not have.
    """
    (n, d), partners = x.shape, max(16, triton.next_power_of_2(len(x)))
    warps = max(2, partners // 16)
    block = min(64, 16 * warps)
    constants = {
        "PRECISION": input_precision(precision), "ANCHORS": ANCHORS, "PARTNERS": partners, "BLOCK_D": block,
        "num_warps": warps,
    }  # fmt: skip
    return (triton.cdiv(n, ANCHORS), triton.cdiv(d, block)), constants
