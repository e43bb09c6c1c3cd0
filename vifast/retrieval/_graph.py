"""Re-ranking by graph convolution over the neighbour lists (Zhang et al. 2020), on sparse rows."""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.retrieval._distances import Features
from vifast.retrieval._rerank import Sparse, combine, compared, invert, nearest_of_blocks, offsets

LAYERS = 2


class _Unwritten:
    """Blocks of memory for queries x gallery: the comparison of two rows needs no distance of theirs."""

    def __init__(self, num_query: int, rows: int):
        self.num_query, self.rows = num_query, rows

    def block(self, start: int, stop: int) -> Tensor:
        return torch.empty(stop - start, self.rows - self.num_query)


def graph(source: Features, cosine: Features, k1: int, k2: int, alpha: float, topk: int | None):
    """1 - cosine of the propagated rows, [Q, G], or the ``topk`` nearest of every query as (dist, index)."""
    n = source.rows
    k1, k2 = min(k1, n), min(k2, n)
    lists = source.lists(max(k1, k2), False, False)[0]
    h = _adjacency(lists[:, :k1])
    begin = torch.arange(0, n * k2 + 1, k2)
    similarity = 1 - cosine.entries(begin, lists[:, :k2].reshape(-1).contiguous())
    weight = similarity.clamp_(min=0).pow_(alpha).view(n, k2)
    for _ in range(LAYERS):
        h = combine(h, lists, k2, weight, False)
    gallery = invert(h, source.num_query)

    def finish(block: Tensor, start: int) -> Tensor:
        _C.rerank_compare(*h, *gallery, None, 0.0, 0.0, False, start, block, torch.get_num_threads())
        return block

    memory = _Unwritten(source.num_query, n)
    if topk is None:
        return compared(memory.block(0, source.num_query), finish)
    return nearest_of_blocks(memory, topk, finish)


def _adjacency(lists: Tensor) -> Sparse:
    """(A + A^T) / 2 of the neighbour graph: 1 where two rows list each other, 1/2 where one lists the other."""
    n = len(lists)
    row, column = torch.arange(n).repeat_interleave(lists.size(1)), lists.flatten().long()
    keys, times = torch.unique(torch.cat([row * n + column, column * n + row]), return_counts=True)
    count = torch.bincount(keys // n, minlength=n)
    return Sparse(offsets(count), count.int(), (keys % n).int(), 0.5 * times.float())
