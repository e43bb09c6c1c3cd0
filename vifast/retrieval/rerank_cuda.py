"""Re-ranking on a GPU: exact lists from ``search``, sets and Jaccard by the kernels of csrc/cuda/rerank.cu.

Sums have the CPU's order. Distances that enter the weights and the output are made in float64 and rounded once.
"""

import torch
from torch import Tensor

from vifast.kernels._extension import _CUDA
from vifast.retrieval._rerank import Settings, Sparse, block_rows, offsets, shares
from vifast.retrieval.products import origin_of
from vifast.retrieval.search import search
from vifast.retrieval.search_cuda import MOST

TILE = 256 * 2**20  # bytes of float64 distances, or of differences of rows, that exist at a time


def can_rerank_cuda(query: Tensor, length: int) -> bool:
    return query.device.type == "cuda" and _CUDA is not None and length <= MOST


class DeviceFeatures:
    """Distances of features where they are."""

    def __init__(self, query: Tensor, gallery: Tensor, metric: str):
        self.x = torch.cat([query, gallery]).contiguous()
        self.metric, self.rows, self.num_query = metric, len(self.x), len(query)
        # That of the queries, as on the CPU and as in search and evaluate: a distance must not depend on the gallery's
        # other rows, of which a process may hold a part.
        self.origin = None if metric == "cosine" else origin_of(query).double()

    def lists(self, length: int, queries_only: bool) -> Tensor:
        q = self.num_query
        near = self.x[:q] if queries_only else self.x
        lists = search(self.x, near, min(length, len(near)), metric=self.metric)[1]
        rest = torch.arange(q, q + length - lists.size(1), device=self.x.device)
        return torch.cat([lists, rest.expand(self.rows, -1)], 1).int()

    def most(self, rows: int) -> Tensor:
        """The largest distance of each of the first rows."""
        step = max(1, TILE // (8 * self.rows))
        parts = [self._tile(start, min(start + step, rows), 0, self.rows) for start in range(0, rows, step)]
        return torch.cat([part.amax(1) for part in parts])

    def block(self, start: int, stop: int) -> Tensor:
        step = max(1, TILE // (8 * (self.rows - self.num_query)))
        return torch.cat(
            [
                self._tile(first, min(first + step, stop), self.num_query, self.rows)
                for first in range(start, stop, step)
            ]
        )

    def _wide(self, rows: slice | Tensor) -> Tensor:
        wide = self.x[rows].double()
        return torch.nn.functional.normalize(wide) if self.metric == "cosine" else wide - self.origin

    def _tile(self, start: int, stop: int, first: int, last: int) -> Tensor:
        a, b = self._wide(slice(start, stop)), self._wide(slice(first, last))
        if self.metric == "cosine":
            return (1 - a @ b.T).clamp_(min=0).float()
        dist = (a @ b.T).mul_(-2).add_(a.square().sum(1, keepdim=True)).add_(b.square().sum(1)).clamp_(min=0)
        return (dist.sqrt_() if self.metric == "euclidean" else dist).float()

    def entries(self, row: Tensor, column: Tensor) -> Tensor:
        """Distances of pairs of rows, by direct difference."""
        step = max(1, TILE // (8 * self.x.size(1)))
        value = [self._pairs(row[i : i + step], column[i : i + step]) for i in range(0, len(row), step)]
        return torch.cat([*value, self.x.new_empty(0, dtype=torch.float32)])

    def _pairs(self, row: Tensor, column: Tensor) -> Tensor:
        a, b = self._wide(row), self._wide(column)
        if self.metric == "cosine":
            return (1 - (a * b).sum(1)).clamp_(min=0).float()
        square = (a - b).square_().sum(1)
        return (square.sqrt_() if self.metric == "euclidean" else square).float()


def k_reciprocal_cuda(source: DeviceFeatures, settings: Settings, topk: int | None):
    """As ``_rerank.k_reciprocal`` in float32, of features on a GPU."""
    q, n = source.num_query, source.rows
    wide, narrow, length = settings.widths(n)
    lists = source.lists(length, settings.queries_only)
    rows = q if settings.queries_only and q >= wide else n  # see _rerank: the gallery's own sets are empty
    most = source.most(rows)
    v = _weights(source, lists, most, wide, narrow, rows)
    if settings.k2 != 1:
        v = _mean(v, lists[:, : min(settings.k2, n)].long())
    by_column = _invert(v, q)
    stream = torch.cuda.current_stream(source.x.device).cuda_stream

    def finish(start: int, stop: int) -> Tensor:
        dist = source.block(start, stop)
        begin = v.begin[start : stop + 1].contiguous()
        _CUDA.rerank_jaccard(begin, v.column, v.value, *by_column, most[start:stop], *settings.blend(), dist, stream)
        return dist

    if topk is None:
        return finish(0, q)
    step = block_rows(n - q)
    best = [finish(start, min(start + step, q)).sort(dim=1, stable=True) for start in range(0, q, step)]
    return torch.cat([b.values[:, :topk] for b in best]), torch.cat([b.indices[:, :topk] for b in best])


def _weights(source: DeviceFeatures, lists: Tensor, most: Tensor, wide: int, narrow: int, rows: int) -> Sparse:
    n, stream = source.rows, torch.cuda.current_stream(lists.device).cuda_stream
    sets = []
    for width in (wide, narrow):
        members, count = lists.new_empty(n, width), lists.new_empty(n)
        _CUDA.rerank_reciprocal(lists, width, members, count, stream)
        sets += [members, count]
    joins = lists.new_empty(rows, wide, dtype=torch.bool)
    _CUDA.rerank_joins(*sets, joins, stream)
    members, count, own, own_count = sets
    row, place = _within(count[:rows], wide).nonzero(as_tuple=True)
    joined, at = joins.nonzero(as_tuple=True)
    base = members[joined, at].long()
    again, slot = _within(own_count[base], narrow).nonzero(as_tuple=True)
    keys = torch.unique(
        torch.cat([row * n + members[row, place], joined[again] * n + own[base[again], slot]])
    )  # in order
    row, column = keys // n, keys % n
    value = torch.exp(-shares(source.entries(row, column), most[row]))
    count = torch.bincount(row, minlength=n)
    begin = offsets(count)
    padded = value.new_zeros(n, max(1, int(count.max())))
    padded[row, torch.arange(len(row), device=row.device) - begin[row]] = value
    return Sparse(begin, count.int(), column.int(), value / padded.sum(1)[row])


def _within(count: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=count.device) < count.unsqueeze(1)


def _mean(v: Sparse, lists: Tensor) -> Sparse:
    """The mean of the rows of every row's neighbours, added in their order."""
    n, k = lists.shape
    sizes = v.count.long()[lists].flatten()
    pair = torch.arange(n * k, device=lists.device).repeat_interleave(sizes)
    entry = torch.arange(len(pair), device=lists.device) - offsets(sizes)[pair] + v.begin[lists.flatten()[pair]]
    keys, held = torch.unique((pair // k) * n + v.column[entry], return_inverse=True)
    total = v.value.new_zeros(len(keys))
    for j in range(k):  # a neighbour's row holds a column once: no two additions meet
        own = pair % k == j
        total[held[own]] += v.value[entry[own]]
    count = torch.bincount(keys // n, minlength=n)
    return Sparse(offsets(count), count.int(), (keys % n).int(), total / k)


def _invert(v: Sparse, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of rows from ``first`` on by column: begin, row, value."""
    start = int(v.begin[first])
    row = torch.arange(len(v.count) - first, device=v.count.device).repeat_interleave(v.count[first:].long())
    column, order = v.column[start:].sort(stable=True)
    begin = offsets(torch.bincount(column, minlength=len(v.count)))
    return begin, row[order].int(), v.value[start:][order]
