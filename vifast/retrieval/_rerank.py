"""The stages of k-reciprocal re-ranking over any source of distances: sets, weights, query expansion, Jaccard."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vifast._progress import steps
from vifast.kernels import _C
from vifast.retrieval.ranking import offsets

BLOCK = 256 * 2**20  # bytes of distances that exist at a time where the caller wants only the nearest
LEAST_BLOCK = 64  # queries of a block
COMPARING = "comparing neighbours"


@dataclass(frozen=True)
class Settings:
    k1: int
    k2: int
    lambda_: float
    queries_only: bool
    half: bool

    def widths(self, rows: int) -> tuple[int, int, int]:
        """Neighbours that make a set, that make the set of a member, and that a list must hold."""
        wide, narrow = self.k1 + 1, round(self.k1 / 2) + 1
        return min(wide, rows), min(narrow, rows), min(max(wide, self.k2), rows)

    def blend(self) -> tuple[float, float]:
        """Weights of the Jaccard and of the original distance."""
        jaccard = 1 - self.lambda_
        return float(np.float16(jaccard)) if self.half else jaccard, self.lambda_


class Sparse(NamedTuple):
    """Entries of row i: ``begin[i] .. begin[i] + count[i] - 1``, by rising column."""

    begin: Tensor  # [n + 1] int64
    count: Tensor  # [n] int32
    column: Tensor  # int32
    value: Tensor  # float32


def k_reciprocal(source, settings: Settings, topk: int | None):
    """Re-ranked [Q, G], or the ``topk`` nearest of every query as (dist, index)."""
    wide, narrow, length = settings.widths(source.rows)
    lists, most, dist = source.lists(length, settings.queries_only, topk is None)
    v = _weights(source, lists, most, wide, narrow, settings)
    if settings.k2 != 1:
        v = combine(v, lists, min(settings.k2, source.rows), None, settings.half)
    gallery = invert(v, source.num_query)

    def finish(block: Tensor, start: int) -> Tensor:
        _C.rerank_compare(*v, *gallery, most, *settings.blend(), settings.half, start, block, torch.get_num_threads())
        return block

    return compared(dist, finish) if topk is None else nearest_of_blocks(source, topk, finish)


def compared(dist: Tensor, finish) -> Tensor:
    """``dist [Q, G]`` after ``finish(block of its rows, first row)``, which writes to it."""
    for start in steps(range(0, len(dist), block_rows(dist.size(1))), COMPARING):
        finish(dist[start : start + block_rows(dist.size(1))], start)
    return dist


def nearest_of_blocks(source, topk: int, finish) -> tuple[Tensor, Tensor]:
    """The ``topk`` smallest of every row of a matrix that is made in blocks by ``finish(distances, first row)``."""
    value = torch.empty(source.num_query, topk)
    index = torch.empty(source.num_query, topk, dtype=torch.int64)
    step = block_rows(source.rows - source.num_query)
    for start in steps(range(0, source.num_query, step), COMPARING):
        rows = slice(start, min(start + step, source.num_query))
        block = finish(source.block(rows.start, rows.stop), start)
        _C.smallest(block, topk, value[rows], index[rows], torch.get_num_threads())
    return value, index


def block_rows(gallery: int) -> int:
    """Queries of a block of distances."""
    return max(LEAST_BLOCK, BLOCK // (4 * gallery) // LEAST_BLOCK * LEAST_BLOCK)


def _weights(source, lists: Tensor, most: Tensor, wide: int, narrow: int, settings: Settings) -> Sparse:
    """V: exp(-O) over the expanded reciprocal set of every row, divided by its sum."""
    n, threads = source.rows, torch.get_num_threads()
    sets = []
    for width in (wide, narrow):
        members, count = torch.empty(n, width, dtype=torch.int32), torch.empty(n, dtype=torch.int32)
        _C.rerank_reciprocal(lists, width, members, count, threads)
        sets += [members, count]
    # With this many queries, lists of queries alone name no gallery row, so the gallery's own sets are empty.
    only = settings.queries_only and source.num_query >= wide
    rows = source.num_query if only else n
    count = torch.zeros(n, dtype=torch.int32)
    _C.rerank_expand(*sets, None, count[:rows], None, threads)
    begin = offsets(count)
    column = torch.empty(int(begin[-1]), dtype=torch.int32)
    _C.rerank_expand(*sets, begin[: rows + 1], count[:rows], column, threads)
    value = source.entries(begin[: rows + 1], column)
    value = shares(value, most[:rows].repeat_interleave(count[:rows]))
    np.exp(-value.numpy(), out=value.numpy())
    _C.rerank_normalise(begin, value, settings.half, threads)
    return Sparse(begin, count, column, value)


def shares(dist: Tensor, most: Tensor) -> Tensor:
    """Distances as a share of their row's largest; 0 in a row of zeros."""
    return torch.where(most > 0, dist / most, 0.0)


def combine(v: Sparse, lists: Tensor, k: int, weight: Tensor | None, half: bool) -> Sparse:
    """Row i = sum over k of ``weight[i, j]`` times its j-th neighbour's row, to unit length; else their mean."""
    n = len(lists)
    room = v.count.long()[lists[:, :k].long()].sum(1).clamp(max=n)
    begin = offsets(room)
    out = Sparse(
        begin,
        torch.empty(n, dtype=torch.int32),
        torch.empty(int(begin[-1]), dtype=torch.int32),
        torch.empty(int(begin[-1])),
    )
    _C.rerank_combine(*v, lists, k, weight, half, *out, torch.get_num_threads())
    return out


def invert(v: Sparse, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of rows from ``first`` on by column: begin, row, value."""
    entries = int(v.count[first:].sum())
    begin = torch.empty(len(v.count) + 1, dtype=torch.int64)
    row, value = torch.empty(entries, dtype=torch.int32), torch.empty(entries)
    _C.rerank_invert(*v, first, begin, row, value)
    return begin, row, value
