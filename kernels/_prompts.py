"""What the three ops of CKDA's prompts share: cells of images, and the columns of a sample among all.

An image [C, H, W] has G cells of side x side pixels, vectors of D = C side^2 in the order channel, row, column. A
sample has R = S + S' columns: S specific ones, of its modality (0 visible, any other infrared), and S' common ones.
Parameters are packed: P = 2 S + S' rows, the specific ones of visible, those of infrared, the common ones.
"""

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import check


def cells_of(images: Tensor, side: int) -> Tensor:
    """[B, C, H, W] to [B, G, D]."""
    return pixel_unshuffle(images, side).flatten(2).mT


def images_of(cells: Tensor, side: int, height: int) -> Tensor:
    """[B, G, D] to [B, C, height, W]."""
    return pixel_shuffle(cells.mT.unflatten(2, (height // side, -1)), side)


def columns_of(modality: Tensor, specific: int, packed: int) -> Tensor:
    """[B, R]: the packed row of every column of a sample."""
    column = torch.arange(packed - specific, device=modality.device)
    return column + specific * ((modality[:, None] != 0) | (column >= specific))


def packed_sum(rows: Tensor, columns: Tensor, packed: int) -> Tensor:
    """Sum over samples of rows [B, R, ...], each to its packed row."""
    return rows.new_zeros(packed, *rows.shape[2:]).index_add_(0, columns.flatten(), rows.flatten(0, 1))


def tile(size: int, most: int = 1 << 20) -> int:
    """Rows or columns of a tile that a product takes."""
    return min(most, max(16, triton.next_power_of_2(size)))


@triton.jit
def is_infrared(modality_ptr, sample):
    return (tl.load(modality_ptr + sample) != 0).to(tl.int32)


@triton.jit
def pixels_at(sample, cell, d, channels, height, width, SIDE: tl.constexpr):
    """Offsets [len(cell), len(d)] of entries d of cells of a sample in [B, C, H, W]."""
    across = width // SIDE
    corner = (cell // across * width + cell % across) * SIDE
    plane = (sample.to(tl.int64) * channels + d // (SIDE * SIDE)) * height
    return (plane + d // SIDE % SIDE)[None, :] * width + (d % SIDE)[None, :] + corner[:, None]


@triton.jit
def total_of_samples(parts_ptr, modality_ptr, which, row, n, rows, cols, k, BLOCK: tl.constexpr):
    """Sum of parts [n, rows, cols] at (row, k), in their order: of all samples, of a modality for which < 2."""
    total = tl.zeros((BLOCK,), tl.float32)
    for sample in range(0, n):
        end = tl.where((which == 2) | (is_infrared(modality_ptr, sample) == which), cols, 0)
        at = (tl.cast(sample, tl.int64) * rows + row) * cols + k
        total += tl.load(parts_ptr + at, mask=k < end, other=0.0)
    return total


@triton.jit
def entries_of(chunk, QUARTER: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Entries of cells by fours that share a draw, one of each quarter; and whether they exist."""
    e = tl.arange(0, BLOCK)
    i = chunk * (BLOCK // 4) + e // 4
    d = e % 4 * QUARTER + i
    return d, (i < QUARTER) & (d < WIDTH)


@triton.jit
def words_of(seed_ptr, cell, chunk, BLOCK: tl.constexpr):
    """Words [len(cell), BLOCK] of the entries of a chunk of cells numbered through all samples."""
    zero = tl.zeros((cell.shape[0], BLOCK // 4), tl.uint32)
    i = zero + (chunk * (BLOCK // 4) + tl.arange(0, BLOCK // 4)).to(tl.uint32)[None, :]
    low = zero + (cell & 0xFFFFFFFF).to(tl.uint32)[:, None]
    high = zero + (cell >> 32).to(tl.uint32)[:, None]
    a, b, c, d = tl.philox(tl.load(seed_ptr), i, low, high, zero)
    return tl.join(tl.join(a, c), tl.join(b, d)).reshape(cell.shape[0], BLOCK)


@triton.jit
def kept(x, bits, dropped, scale):
    return tl.where(bits.to(tl.int32) >= dropped, x * scale, 0.0)


@triton.jit
def columns_at(values_ptr, sample, g, r, first, n_own, columns, cells, POSITIVE: tl.constexpr):
    """Values [len(g), len(r)] of n_own columns from the first on; of common ones what is above 0."""
    at = (sample.to(tl.int64) * columns + first + r)[None, :] * cells + g[:, None]
    v = tl.load(values_ptr + at, mask=(r[None, :] < n_own) & (g[:, None] < cells), other=0.0)
    return tl.where(v < 0.0, 0.0, v) if POSITIVE else v


@triton.jit
def weights_at(weight_ptr, d, r, first, n_own, packed, inside):
    """Weights [len(r), len(d)] of packed columns."""
    mask = (r[:, None] < n_own) & inside[None, :]
    return tl.load(weight_ptr + d[None, :] * packed + first + r[:, None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def normalized_at(
    hidden_ptr, modality_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, sample, r, g, specific, columns, cells
):  # fmt: skip
    """Of some cells of a sample h, y and u, [len(r), len(g)], where they lie, and which of them exist."""
    at = (sample.to(tl.int64) * columns + r)[:, None] * cells + g[None, :]
    mask = (r[:, None] < columns) & (g[None, :] < cells)
    row = tl.where(r < specific, r + is_infrared(modality_ptr, sample) * specific, r + specific)
    h = tl.load(hidden_ptr + at, mask=mask, other=0.0)
    mean = tl.load(mean_ptr + sample * columns + r, mask=r < columns, other=0.0)
    y = (h - mean[:, None]) * tl.load(rstd_ptr + sample * columns + r, mask=r < columns, other=0.0)[:, None]
    weight = tl.load(weight_ptr + row, mask=r < columns, other=0.0).to(tl.float32)
    u = y * weight[:, None] + tl.load(bias_ptr + row, mask=r < columns, other=0.0).to(tl.float32)[:, None]
    return h, y, u, at, mask


def check_sizes(name: str, images: Tensor, modality: Tensor, packed: int, width: int, specific: int, side: int) -> None:
    fits = images.dim() == 4 and modality.shape == images.shape[:1] and packed >= 2 * specific
    fits = fits and images.size(2) % side == images.size(3) % side == 0 and width == images.size(1) * side * side
    check(
        fits,
        lambda: (
            f"{name}: expected [B, C, H, W] of cells of {side} x {side}, [B] and weights of {2 * specific} or more "
            f"by C * {side * side}, got {list(images.shape)}, {list(modality.shape)} and {packed} by {width}"
        ),
    )
