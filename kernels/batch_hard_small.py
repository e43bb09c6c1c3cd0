"""Triton kernel of batch_hard for few rows, one launch with the reduction; and the steps that streamed kernels share.

The last program of each block of anchors mines them and the last of those adds up their losses, see ``_split``. The
backward of few rows is the one of many.
"""

from torch import Tensor

from vifast.kernels._lang import tl, triton
from vifast.kernels._reduction import share_of_row
from vifast.kernels._small import SMALL, counters, last_program, reduce_rows
from vifast.kernels._split import split_launch, store_products, sum_products


@triton.jit
def keys(sq, same, inside):
    """What is to be largest among positives and among negatives: distances, and distances below zero."""
    broken = sq != sq  # noqa: PLR0124 - a NaN partner wins both sides; ``finish`` makes it NaN
    pos = tl.where(inside & same, tl.where(broken, float("inf"), sq), float("-inf"))
    neg = tl.where(inside & (same == 0), tl.where(broken, float("inf"), -sq), float("-inf"))
    return pos, neg


@triton.jit
def keep_best(tile, start, key, idx):
    """Largest key of each row so far; blocks come in rising order, so an equal key keeps the earlier index."""
    best, at = tl.max(tile, 1, return_indices=True, return_indices_tie_break_left=True)
    better = best > key
    return tl.where(better, best, key), tl.where(better, start + at.to(tl.int64), idx)


@triton.jit
def finish(
    x_ptr, y_ptr, loss_ptr, d_pos_ptr, d_neg_ptr, i_pos_ptr, i_neg_ptr, anchor, i_pos, i_neg, margin, n, n_cols,
    ROOT: tl.constexpr, SCALE_: tl.constexpr, SOFT: tl.constexpr, FLOOR_: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Distances of the winners by direct difference, and the loss of the two, stored."""
    pos = tl.zeros((anchor.shape[0], BLOCK), tl.float32)
    neg = tl.zeros((anchor.shape[0], BLOCK), tl.float32)
    inside = anchor < n
    for start in range(0, n_cols, BLOCK):
        k = (start + tl.arange(0, BLOCK))[None, :]
        mask = inside[:, None] & (k < n_cols)
        x = tl.load(x_ptr + anchor[:, None] * n_cols + k, mask=mask, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + tl.maximum(i_pos, 0)[:, None] * n_cols + k, mask=mask, other=0.0).to(tl.float32)
        pos += (x - y) * (x - y)
        y = tl.load(y_ptr + tl.maximum(i_neg, 0)[:, None] * n_cols + k, mask=mask, other=0.0).to(tl.float32)
        neg += (x - y) * (x - y)
    d_pos = tl.where(i_pos < 0, float("-inf"), distance(tl.sum(pos, 1), ROOT, SCALE_, FLOOR_))
    d_neg = tl.where(i_neg < 0, float("inf"), distance(tl.sum(neg, 1), ROOT, SCALE_, FLOOR_))
    gap = d_pos - d_neg
    if SOFT:
        loss = tl.maximum(gap, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(gap)))
    else:
        loss = tl.maximum(gap + tl.cast(margin, tl.float32), 0.0)
    tl.store(loss_ptr + anchor, tl.where(gap == gap, loss, gap), mask=inside)  # noqa: PLR0124 - maximum drops a NaN
    tl.store(d_pos_ptr + anchor, d_pos, mask=inside)
    tl.store(d_neg_ptr + anchor, d_neg, mask=inside)
    tl.store(i_pos_ptr + anchor, i_pos, mask=inside)
    tl.store(i_neg_ptr + anchor, i_neg, mask=inside)


@triton.jit
def distance(sq, ROOT: tl.constexpr, SCALE_: tl.constexpr, FLOOR_: tl.constexpr):
    if ROOT:
        return tl.sqrt_rn(tl.where(sq < FLOOR_, FLOOR_, sq))
    return sq * SCALE_


@triton.jit
def _forward_kernel(
    x_ptr, y_ptr, labels_ptr, ref_labels_ptr, parts_ptr, counter_ptr, total_ptr, loss_ptr, d_pos_ptr, d_neg_ptr,
    i_pos_ptr, i_neg_ptr, margin, share, n, m, n_cols, SAME: tl.constexpr, ROOT: tl.constexpr, SCALE_: tl.constexpr,
    SOFT: tl.constexpr, FLOOR_: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    ANCHORS: tl.constexpr, PARTNERS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """total_ptr None: nobody asked for the sum of share * loss."""
    anchor = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS).to(tl.int64)
    partner = tl.arange(0, PARTNERS).to(tl.int64)
    store_products(x_ptr, y_ptr, parts_ptr, anchor, partner, n, m, n_cols, PRECISION, COLUMNS, BLOCK_K)
    if last_program(counter_ptr + tl.program_id(0), tl.num_programs(1)):
        sq = sum_products(x_ptr, y_ptr, parts_ptr, anchor, partner, n, m, n_cols, CLOSE, SAME)
        label = tl.load(labels_ptr + anchor, mask=anchor < n, other=0)
        ref_label = tl.load(ref_labels_ptr + partner, mask=partner < m, other=0)
        pos, neg = keys(sq, label[:, None] == ref_label[None, :], partner[None, :] < m)
        nothing = tl.full((ANCHORS,), float("-inf"), tl.float32)
        nobody = tl.full((ANCHORS,), -1, tl.int64)
        _, i_pos = keep_best(pos, 0, nothing, nobody)
        _, i_neg = keep_best(neg, 0, nothing, nobody)
        finish(x_ptr, y_ptr, loss_ptr, d_pos_ptr, d_neg_ptr, i_pos_ptr, i_neg_ptr, anchor, i_pos, i_neg, margin,
               n, n_cols, ROOT, SCALE_, SOFT, FLOOR_, 2 * PARTNERS)  # fmt: skip
        if total_ptr is not None:
            blocks = tl.num_programs(0)
            reduce_rows(loss_ptr, total_ptr, counter_ptr + blocks, share, n, blocks, ROWS)


def mine(
    x: Tensor,
    labels: Tensor,
    y: Tensor,
    ref_labels: Tensor,
    margin: float | None,
    precision: str,
    reduction: str,
    out: tuple,
    constants: dict,
) -> None:
    """What the op allocated, filled for at most SMALL contiguous anchors and references."""
    total, *mined = out
    rows, total = (total, None) if reduction == "none" else (total.new_empty(len(x)), total)
    grid, parts, blocks = split_launch(x, y, precision)
    _forward_kernel[grid](
        x, y, labels, ref_labels, parts, counters(x), total, rows, *mined, margin or 0.0,
        share_of_row(len(x), reduction), len(x), len(y), x.size(1), SAME=y is x, ROWS=SMALL, **constants, **blocks,
    )  # fmt: skip
