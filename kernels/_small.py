"""Small batches on a GPU: up to how many rows one launch does all of a loss, and how its last program knows that it is.

A launch costs the host time and leaves a gap between kernels on the card, both much longer than the megabyte of 128
rows of 2048 takes to be read. Beyond these limits the work of one program grows with the square of the rows while the
launches stay as many, so there the streamed kernels win. Static reasoning: no card has been at hand.
"""

import torch
from torch import Tensor

from vifast.kernels._lang import tl, triton

SMALL = 128  # rows whose pairs are formed in one launch: a tile of all of a row's partners stays in registers
PROTOTYPED = 32  # rows of prototype_alignment, whose graphs one program holds in float64: those of 64 spill on sm_80
LABELLED = 512  # rows that one program can compare by their labels alone; more are sorted

_counters = {}


def counters(x: Tensor) -> Tensor:
    """SMALL zeros on the device of x, which the kernels of a stream share: ``last_program`` leaves them 0.

    A CUDA graph has its own, cleared whenever it is replayed, for it may run beside the stream that it was made on.
    """
    if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(SMALL, dtype=torch.int32, device=x.device)
    stream = torch.cuda.current_stream(x.device).cuda_stream if x.device.type == "cuda" else 0
    if (x.device, stream) not in _counters:
        _counters[x.device, stream] = torch.zeros(SMALL, dtype=torch.int32, device=x.device)
    return _counters[x.device, stream]


@triton.jit
def last_program(counter_ptr, programs):
    """Whether the other ``programs`` - 1 are done: True in one of them, which then sees all that they wrote.

    The order in which programs finish decides who goes on, never what is computed: an integer is counted, and what the
    others wrote is read in one order.
    """
    tl.debug_barrier()  # one thread counts, for the writes of all
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def reduce_rows(rows_ptr, out_ptr, counter_ptr, share, n, programs, ROWS: tl.constexpr):
    """Called by ``programs`` that have written the losses of rows: the last one stores share * their sum, in order."""
    if last_program(counter_ptr, programs):
        row = tl.arange(0, ROWS)
        tl.store(out_ptr, tl.sum(tl.load(rows_ptr + row, mask=row < n, other=0.0)) * tl.cast(share, tl.float32))


@triton.jit
def next_row(chosen, j, row, n):
    """The first row after ``row`` of those rows ``j`` that are chosen; n where there is none."""
    return tl.min(tl.where(chosen & (j > row), j, n))


@triton.jit
def load_row(x_ptr, row, col, n_cols):
    """Columns ``col`` of one row in float32, 0 beyond the last."""
    return tl.load(x_ptr + tl.cast(row, tl.int64) * n_cols + col, mask=col < n_cols, other=0.0).to(tl.float32)
