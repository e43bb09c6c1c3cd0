r"""memory_update: the rows of a batch's classes move in memories of class features, in place.

    stream s    m_sk = unit(keep m_sk + (1 - keep) mean of x_si over l_i = k)
    global      m_gk = unit(keep_global m_gk + (1 - keep_global) x_h),  x_h the row of class k, of all streams, that is
                least similar to m_gk: argmin <x, m_gk>

Shapes   memory [S + 1, K, D] float32 (float64 by the definition), contiguous: S streams, then the global one. feat
         [S, N, D]: row i of every stream has label i of labels [N] int64. Nothing is returned; memory is written to.
Defined  ties go to the lower stream, then to the lower row. A class without rows keeps its own, bit for bit. A label
         outside 0 .. K-1 belongs to no class. A product that is not finite counts as the least; a non-finite row
         spoils its class alone. unit(0) = 0. Without classes, rows or columns nothing moves.
Exact    products are summed in float64, so that paths agree on the least similar row; means add rows in rising order,
         on the CPU in float64. A row of memory is written by one program or thread: the same bits always.
Gradient none: memories are no function of the weights.
Memory   a row a thread. On a GPU nothing: u is written before it is scaled.
Floor    S*N*D*4 bytes read twice, once for each kind of row; (S + 1)*P*D*4 read and written for P classes.
Measured 7.7 and 3.1 of reading and writing the rows once (3 streams of 32 and 128 rows of 2048, 395 classes, 2 cores of
         an AMD EPYC).
Source   spec dakd 3 (memory update), H7.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels.class_centers import class_centers_ref
from vifast.kernels.unit_rows import LEAST_NORM


def memory_update_ref(memory: Tensor, feat: Tensor, labels: Tensor, keep: float, keep_global: float) -> None:
    streams, n, _ = feat.shape
    classes = memory.size(1)
    if memory.numel() == 0 or n == 0:
        return
    rows, owner = feat.to(memory.dtype).flatten(0, 1), labels.repeat(streams)
    inside = (owner >= 0) & (owner < classes)
    place = torch.arange(len(rows), device=labels.device)
    means, counts = class_centers_ref(rows, torch.where(inside, owner + place // n * classes, -1), streams * classes)
    similarity = (rows.double() * memory[-1, owner.clamp(0, classes - 1)].double()).sum(1)
    order = torch.where(similarity.isfinite(), similarity, -torch.inf).argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, place)
    first = rank.new_full((classes + 1,), len(rank) - 1)
    first.scatter_reduce_(0, torch.where(inside, owner, classes), rank, "amin")
    steps = torch.cat((means, rows[order[first[:classes]]])).view_as(memory)
    share = memory.new_tensor([keep] * streams + [keep_global]).view(-1, 1, 1)
    moved = normalize(share * memory + (1 - share) * steps, dim=2, eps=LEAST_NORM)
    memory.copy_(torch.where(counts[:classes, None] > 0, moved, memory))


@triton.jit
def _move_row(row_ptr, x_ptr, labels_ptr, own, first, last, n_cols, keep, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    """One row of memory towards the mean of the rows first .. last - 1 of x that are its own."""
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        count = 0.0
        j = first
        while j < last:
            if tl.load(labels_ptr + j) == own:
                total += tl.load(x_ptr + j * n_cols + col, mask=col < n_cols, other=0.0).to(tl.float32)
                count += 1.0
            j += 1
        row = tl.load(row_ptr + col, mask=col < n_cols, other=0.0)
        u = keep * row + (1.0 - keep) * (total / count)
        square += tl.where(col < n_cols, u * u, 0.0)
        tl.store(row_ptr + col, u, mask=col < n_cols)
    norm = tl.sqrt(tl.sum(square))
    inverse = 1.0 / tl.where(norm < LEAST, LEAST, norm)
    tl.debug_barrier()
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        u = tl.load(row_ptr + col, mask=col < n_cols, other=0.0)
        tl.store(row_ptr + col, u * inverse, mask=col < n_cols)


@triton.jit
def _similarity(x_ptr, row_ptr, n_cols, BLOCK: tl.constexpr):
    product = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + col, mask=col < n_cols, other=0.0).to(tl.float64)
        product += x * tl.load(row_ptr + col, mask=col < n_cols, other=0.0).to(tl.float64)
    similarity = tl.sum(product)
    return tl.where(tl.abs(similarity) < float("inf"), similarity, float("-inf"))


@triton.jit
def _update_kernel(
    memory_ptr, x_ptr, labels_ptr, streams, n_rows, n_classes, n_cols, keep, keep_global,
    LEAST: tl.constexpr, LABELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row and set; that of the first row of a class moves the class's row in the set."""
    i = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1).to(tl.int64)
    own = tl.load(labels_ptr + i)
    earlier = tl.zeros((LABELS,), tl.int32)
    for start in range(0, i, LABELS):
        j = start + tl.arange(0, LABELS)
        earlier += ((tl.load(labels_ptr + j, mask=j < i, other=0) == own) & (j < i)).to(tl.int32)
    if (tl.sum(earlier) == 0) & (own >= 0) & (own < n_classes):
        row_ptr = memory_ptr + (s * n_classes + own) * n_cols
        if s < streams:
            stream_ptr = x_ptr + s * n_rows * n_cols
            _move_row(row_ptr, stream_ptr, labels_ptr, own, i, n_rows, n_cols, keep, LEAST, BLOCK)
        else:
            hardest = i
            least = tl.full((), float("inf"), tl.float64)
            for t in range(0, streams):
                j = i
                while j < n_rows:
                    if tl.load(labels_ptr + j) == own:
                        at = j + t * n_rows
                        similarity = _similarity(x_ptr + at * n_cols, row_ptr, n_cols, BLOCK)
                        if similarity < least:
                            hardest = at
                            least = similarity
                    j += 1
            one_ptr = x_ptr + (hardest - i) * n_cols  # that row, as the only one from i on
            _move_row(row_ptr, one_ptr, labels_ptr, own, i, i + 1, n_cols, keep_global, LEAST, BLOCK)


memory_update = Op("memory_update", memory_update_ref, mutates=("memory",))


@memory_update.register_fake
def _check(memory, feat, labels, keep, keep_global):
    fits = memory.dim() == feat.dim() == 3 and memory.size(0) == feat.size(0) + 1 > 1
    fits = fits and memory.size(2) == feat.size(2) and labels.shape == feat.shape[1:2]
    shapes = [list(x.shape) for x in (memory, feat, labels)]
    check(fits, lambda: "memory_update: expected [S + 1, K, D], [S, N, D] and [N], got {}, {} and {}".format(*shapes))
    whole = memory.dtype in (torch.float32, torch.float64) and memory.is_contiguous()
    check(whole, lambda: f"memory_update: expected a contiguous float32 memory, got {memory.dtype}")


@memory_update.register_kernel("cpu")
def _cpu(memory, feat, labels, keep, keep_global):
    _check(memory, feat, labels, keep, keep_global)
    _C.memory_update(memory, float_rows(feat), labels.contiguous(), keep, keep_global, torch.get_num_threads())


@memory_update.register_kernel("cuda")
def _triton(memory, feat, labels, keep, keep_global):
    _check(memory, feat, labels, keep, keep_global)
    if memory.numel() * feat.numel() == 0:
        return
    streams, n, d = feat.shape
    block = min(1024, triton.next_power_of_2(d))
    with torch.cuda.device_of(memory):
        _update_kernel[(n, streams + 1)](
            memory, feat.detach().contiguous(), labels.contiguous(), streams, n, memory.size(1), d, keep, keep_global,
            LEAST=LEAST_NORM, LABELS=128, BLOCK=block,
        )  # fmt: skip
