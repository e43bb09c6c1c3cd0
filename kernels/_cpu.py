"""What the CPU paths share: matrix products with reproducible bits, tiles of one set against itself."""

import torch
from torch import Tensor

from vifast.kernels import _C

# float64 alone is left to the BLAS. Summing at most this many columns in one call keeps MKL from splitting the sum over
# threads, which would make the last bits depend on their number. Fewer rows than LEAST_ROWS on the left, or one on the
# right, take paths that depend on it all the same: 42 of 944 random shapes differed between 1 and 2 threads, each with
# 4 to 15 rows on the left.
DEPTH = 512
LEAST_ROWS = 16


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``out = a @ b.T`` with the same bits for any number of threads. Shapes [M, D], [N, D] -> [M, N]."""
    if out.dtype == torch.float32:
        threads = torch.get_num_threads()
        if b.stride(1) == 1:
            left, right = (_C.PackedRows(x.contiguous(), None, threads) for x in (a, b))
            left.products(right, out, threads)
        else:
            _C.weighted_sums(a, b.T, out, False, threads)
        return out
    if len(a) < LEAST_ROWS or len(b) == 1:
        a_wide, b_wide = _at_least(a, LEAST_ROWS), _at_least(b, 2)
        wide = product(a_wide, b_wide, out.new_empty(len(a_wide), len(b_wide)))
        return out.copy_(wide[: len(a), : len(b)])
    torch.mm(a[:, :DEPTH], b[:, :DEPTH].T, out=out)
    for k in range(DEPTH, a.size(1), DEPTH):
        torch.addmm(out, a[:, k : k + DEPTH], b[:, k : k + DEPTH].T, out=out)
    return out


def _at_least(rows: Tensor, n: int) -> Tensor:
    return rows if len(rows) >= n else torch.cat((rows, rows.new_zeros(n - len(rows), rows.size(1))))


def diagonal_last(n: int, step: int):
    """Tiles (row start, row stop, column start, column stop) of the upper triangle, the diagonal last."""
    tiles = [(i, min(i + step, n), j, min(j + step, n)) for i in range(0, n, step) for j in range(i, n, step)]
    return sorted(tiles, key=lambda tile: tile[0] == tile[2])


def weighted_rows(sets: list[Tensor | None], weigh, step: int) -> list[Tensor | None]:
    """``w @ rows`` for each set of rows [N, D], of symmetric weights that are made tile by tile.

    ``weigh(*tiles, i, j)`` fills one tile a set, for rows from i and columns from j of the upper triangle. A set may be
    None: its weights are made, as the others may come of them, and not used.
    """
    like = next(rows for rows in sets if rows is not None)
    outs = [None if rows is None else torch.empty_like(rows) for rows in sets]
    buffers = [like.new_empty(min(step, len(like)) ** 2) for _ in sets]
    started = set()

    def add(out, start, stop, weights, rows):
        part = out[start:stop]
        _C.weighted_sums(weights, rows, part, part.data_ptr() in started, torch.get_num_threads())
        started.add(part.data_ptr())

    for i, i_end, j, j_end in diagonal_last(len(like), step):
        tiles = [buffer[: (i_end - i) * (j_end - j)].view(i_end - i, j_end - j) for buffer in buffers]
        weigh(*tiles, i, j)
        for out, rows, tile in zip(outs, sets, tiles, strict=True):
            if rows is None:
                continue
            add(out, i, i_end, tile, rows[j:j_end])
            if i != j:
                add(out, j, j_end, tile.T, rows[i:i_end])
    return outs


def weighted_pairs(
    x: Tensor, y: Tensor, weigh, sums, wanted: tuple[bool, bool], step: int
) -> tuple[Tensor | None, Tensor | None]:
    """sum_j w_ij (y_j - x_i) and sum_i w_ij (x_i - y_j) of weights of pairs that are made tile by tile.

    ``weigh(tile, i, j)`` fills one from row i and column j on, ``sums(rows, columns)`` in the end their sums. A result
    that is not wanted is None.
    """
    outs = [torch.empty_like(rows) if want else None for rows, want in zip((x, y), wanted, strict=True)]
    buffer, threads = x.new_empty(min(step, len(x)) * min(step, len(y))), torch.get_num_threads()
    for i in range(0, len(x), step):
        for j in range(0, len(y), step):
            rows, cols = x[i : i + step], y[j : j + step]
            tile = buffer[: len(rows) * len(cols)].view(len(rows), len(cols))
            weigh(tile, i, j)
            if outs[0] is not None:
                _C.weighted_sums(tile, cols, outs[0][i : i + step], j > 0, threads)
            if outs[1] is not None:
                _C.weighted_sums(tile.T, rows, outs[1][j : j + step], i > 0, threads)
    totals = x.new_empty(len(x)), x.new_empty(len(y))
    sums(*totals)
    for out, rows, total in zip(outs, (x, y), totals, strict=True):
        if out is not None:
            out.addcmul_(rows, total.unsqueeze(1), value=-1)
    return tuple(outs)


def float_rows(x: Tensor) -> Tensor:
    if x.dtype == torch.float32 and x.is_contiguous():
        return x  # the usual case, without three calls
    return x.to(torch.float32).contiguous()


def centered(x: Tensor, threads: int) -> Tensor:
    """Rows less their mean."""
    mean, out = x.new_empty(x.size(1)), torch.empty_like(x)
    _C.column_mean(x, mean, threads)
    _C.subtract(x, mean, out, threads)
    return out
