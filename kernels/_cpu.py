"""What the CPU paths share: matrix products with reproducible bits, tiles of one set against itself, centred rows."""

import torch
from torch import Tensor

from vifast.kernels import _C

# Summing at most this many columns in one call keeps MKL from splitting the sum over threads, which would make the last
# bits depend on their number. Fewer rows than LEAST_ROWS on the left, or one on the right, take paths that depend on it
# all the same: 42 of 944 random shapes differed between 1 and 2 threads, each with 4 to 15 rows on the left.
DEPTH = 512
LEAST_ROWS = 16


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``out = a @ b.T`` with the same bits for any number of threads. Shapes [M, D], [N, D] -> [M, N], float32."""
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


def tile_pairs(n: int, step: int):
    """Tiles (row start, row stop, column start, column stop) of the upper triangle of an n x n problem, row by row."""
    for i in range(0, n, step):
        for j in range(i, n, step):
            yield i, min(i + step, n), j, min(j + step, n)


def diagonal_last(n: int, step: int):
    """The same tiles, those on the diagonal after all others."""
    return sorted(tile_pairs(n, step), key=lambda tile: tile[0] == tile[2])


def all_tiles(n: int, m: int, step: int):
    """Tiles of an n x m problem, row by row."""
    for i in range(0, n, step):
        for j in range(0, m, step):
            yield i, min(i + step, n), j, min(j + step, m)


def float_rows(x: Tensor) -> Tensor:
    if x.dtype == torch.float32 and x.is_contiguous():
        return x  # the usual case, without three calls
    return x.to(torch.float32).contiguous()


def centered(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less the common mean of the finite entries; ``y`` may be ``x`` itself. Memory: a copy of both."""
    x_c = torch.empty_like(x)
    y_c = x_c if y is x else torch.empty_like(y)
    _C.center(x, y, x_c, y_c, torch.get_num_threads())
    return x_c, y_c
