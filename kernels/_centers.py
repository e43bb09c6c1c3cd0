"""Device code that the losses on centers of identities share: centers of few rows beside every row, column by column.

Who shares an identity with whom is a matrix, and its product with the rows makes their sums: nobody sorts labels.
"""

from vifast.kernels._lang import tl, triton
from vifast.kernels._tile import finite, input_precision

PRECISION = input_precision("exact")
BLOCK_D = 16  # columns whose centers are made at once


@triton.jit
def moved_rows(x_ptr, origin, j, col, n, n_cols):
    """Rows less the origin."""
    mask = (j[:, None] < n) & (col[None, :] < n_cols)
    x = tl.load(x_ptr + j[:, None].to(tl.int64) * n_cols + col[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, x - origin[None, :], 0.0)


@triton.jit
def sharing(labels_ptr, j, m, n):
    """1 where samples j and m share an identity."""
    label = tl.load(labels_ptr + j, mask=j < n, other=0)
    other = tl.load(labels_ptr + m, mask=m < n, other=0)
    return ((label[:, None] == other[None, :]) & (j[:, None] < n) & (m[None, :] < n)).to(tl.float32)


@triton.jit
def center_shares(labels_ptr, j, n, BLOCK_M: tl.constexpr):
    """1 / samples of the identity of each j, 0 beyond n."""
    count = tl.zeros(j.shape, tl.float32)
    for start in range(0, n, BLOCK_M):
        count += tl.sum(sharing(labels_ptr, j, start + tl.arange(0, BLOCK_M), n), 1)
    return tl.where(j < n, 1.0 / tl.maximum(count, 1.0), 0.0)


@triton.jit
def center_rows(x_ptr, origin, labels_ptr, once, j, col, n, n_cols, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr):
    """Mean over the identity of each j. A row that is not finite spoils that of its own identity alone."""
    total = tl.zeros((j.shape[0], col.shape[0]), tl.float32)
    spoiled = tl.zeros(j.shape, tl.float32)
    for start in range(0, n, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        same = sharing(labels_ptr, j, m, n)
        x = moved_rows(x_ptr, origin, m, col, n, n_cols)
        kept = finite(x)
        bad = tl.max((kept != x).to(tl.float32), 1)
        spoiled = tl.maximum(spoiled, tl.max(same * bad[None, :], 1))
        total = tl.dot(same, kept, total, input_precision=PRECISION)
    return tl.where(spoiled[:, None] > 0.0, float("nan"), total * once[:, None])


@triton.jit
def square_column(a_ptr, b_ptr, k, i, j, ROWS: tl.constexpr):
    """Squares of the differences of a[i] and b[j] in one column."""
    a = tl.load(a_ptr + k * ROWS + i[:, None] + 0 * j[None, :])
    b = tl.load(b_ptr + k * ROWS + 0 * i[:, None] + j[None, :])
    return (a - b) * (a - b)


def center_launch(n: int) -> dict[str, int]:
    rows = max(16, triton.next_power_of_2(n))
    launch = {"num_warps": max(2, rows // 16), "num_stages": 1, "maxnreg": 255}  # see graph_alignment_streamed
    return {"ROWS": rows, "BLOCK_M": 16, "BLOCK_D": BLOCK_D} | launch
