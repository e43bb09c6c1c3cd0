"""Device code that the ops on rows of logits share. See csrc/cpu/softmax-inl.h, which is the same in C++."""

import torch
from torch import Tensor

from vifast.kernels._lang import tl, triton


@triton.jit
def expm1_rest(x):
    """e^x - 1 - x for |x| < 1, without cancellation."""
    p = 2.7557319e-6
    p = p * x + 2.4801587e-5
    p = p * x + 1.9841270e-4
    p = p * x + 1.3888889e-3
    p = p * x + 8.3333333e-3
    p = p * x + 4.1666667e-2
    p = p * x + 1.6666667e-1
    p = p * x + 0.5
    return p * x * x


@triton.jit
def side_by_side_offsets(j, row, rows, n_cols):
    """Where column j of logical row ``row`` lies, of the rows row, row + rows, ... laid side by side."""
    return ((j // n_cols).to(tl.int64) * rows + row) * n_cols + j % n_cols


@triton.jit
def pair_tops(a_ptr, b_ptr, row, rows, n_cols, length, BLOCK: tl.constexpr):
    """Largest logits of both sides of one logical row."""
    top_a = tl.full((BLOCK,), float("-inf"), tl.float32)
    top_b = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, length, BLOCK):
        j = start + tl.arange(0, BLOCK)
        at = side_by_side_offsets(j, row, rows, n_cols)
        a = tl.load(a_ptr + at, mask=j < length, other=float("-inf")).to(tl.float32)
        b = tl.load(b_ptr + at, mask=j < length, other=float("-inf")).to(tl.float32)
        top_a = tl.where(a > top_a, a, top_a)
        top_b = tl.where(b > top_b, b, top_b)
    return tl.max(top_a), tl.max(top_b)


@triton.jit
def pair_terms(a_ptr, b_ptr, j, row, rows, n_cols, length, top_a, top_b):
    """x = a - top_a, y = b - top_b, d = x - y exactly rounded, their exponentials, and e^x - e^y = e^y expm1(d)."""
    inside = j < length
    at = side_by_side_offsets(j, row, rows, n_cols)
    a = tl.load(a_ptr + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(inside, a - top_a, 0.0)
    y = tl.where(inside, b - top_b, 0.0)
    shift = top_a.to(tl.float64) - top_b.to(tl.float64)
    d = tl.where(inside, (a.to(tl.float64) - b.to(tl.float64) - shift).to(tl.float32), 0.0)
    e_a = tl.where(inside, tl.exp(x), 0.0)
    e_b = tl.where(inside, tl.exp(y), 0.0)
    e_w = tl.where(tl.abs(d) < 1.0, e_b * (d + expm1_rest(d)), e_a - e_b)
    return x, y, d, e_a, e_b, e_w


@triton.jit
def store_states(at, side, values, mask):
    """Two online softmaxes of every row, three values each, ``side`` apart."""
    for k in tl.static_range(6):
        tl.store(at + k * side, values[k], mask=mask)


@triton.jit
def total(x):
    """Sum of a block as a float64 scalar."""
    return tl.sum(x).to(tl.float64)


@triton.jit
def tilt(p, q, y):
    """q - p - p y, q - p and p y of q = p e^y, without cancellation."""
    p_y = p * y
    near = tl.abs(y) < 1.0
    rest = tl.where(near, p * expm1_rest(y), q - p - p_y)
    return rest, tl.where(near, p_y + rest, q - p), p_y


@triton.jit
def divergence(s_p, s_q, s_y, s_rest):
    """KL(p || q) and the ratio of the partition sums, q over p, of sums over a row: of p, q, p y and q - p - p y."""
    mean, part = s_y / s_p, (s_y + s_rest) / s_p
    close = part > -0.5  # otherwise the sums that carry close rows cancel
    ratio = tl.where(close, 1.0 + part, s_q / s_p)
    kl = tl.log(ratio) - mean
    return tl.where(kl < 0.0, 0.0, kl), ratio


def row_launch(length: int) -> dict[str, int]:
    """Block and warps of a program that walks one row: four elements a thread."""
    block = min(512, max(128, triton.next_power_of_2(length)))
    return {"BLOCK": block, "num_warps": max(1, block // 128)}


def gpu_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Kernels read rows of any float type in place; only a strided layout is copied."""
    return a.detach().contiguous(), b.detach().contiguous()


def empty_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (a, b))
