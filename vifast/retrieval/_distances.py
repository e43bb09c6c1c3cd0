"""Where re-ranking gets its distances: from features (exact lists), from float32 products as published, from matrices.

Each source has ``rows`` (queries, then gallery) and ``num_query``. ``lists(length, queries_only, keep)`` gives the
nearest rows of every row, the largest distance of every row, and with ``keep`` the distances of queries to the gallery;
``entries(begin, column)`` those of row i to columns ``begin[i] ..``; ``block(start, stop)`` those of some queries.
"""

import torch
from torch import Tensor

from vifast._progress import steps
from vifast.kernels import _C
from vifast.kernels._cpu import product
from vifast.retrieval.products import norms, origin_of, working_dtype

BLOCK = 64 * 2**20  # bytes of distances that exist at a time
SPARE = 32  # candidates held beyond those that are wanted


class Keyed:
    """Rows as they are multiplied: of unit length for the cosine, otherwise with what is taken from them.

    ``query`` are all queries of the call: a row's place must not depend on which others are looked at with it.
    """

    def __init__(self, query: Tensor, metric: str):
        self.metric, self.origin, self.shift = metric, None, None
        if metric != "cosine":
            origin = origin_of(query)
            # float64 rows are shifted before they are rounded, float32 rows as they are packed.
            self.origin, self.shift = (None, origin) if query.dtype == torch.float64 else (origin, None)

    def rows(self, rows: Tensor) -> Tensor:
        if self.metric == "cosine":
            norm = norms(rows)[:, None]
            return torch.where(norm > 0, rows / norm, 0.0).float()
        return rows.float() if self.shift is None else (rows - self.shift).float()

    def pairs(self, a: Tensor, b: Tensor, most: Tensor, dist: Tensor | None) -> None:
        """Distances of rows ``a`` to rows ``b``; ``most`` rises to the largest of each row."""
        both = torch.cat([a, b])
        function = _C.rerank_distances_float64 if both.dtype == torch.float64 else _C.rerank_distances_float32
        function(both, self.rows(both), self.origin, self.metric, len(a), 0, most, dist, torch.get_num_threads())


class Features:
    """Neighbours found exactly: products nominate, float64 decides, ties by lower index."""

    def __init__(self, query: Tensor, gallery: Tensor, metric: str):
        rows = torch.cat([query, gallery])
        rows = rows.to(working_dtype(rows.dtype))
        self.rows, self.num_query = len(rows), len(query)
        keyed = Keyed(rows[: len(query)], metric)
        self._arguments = (rows, keyed.rows(rows), keyed.origin, metric, self.num_query)
        self._suffix = str(rows.dtype).removeprefix("torch.")

    def _call(self, name: str, *arguments) -> None:
        getattr(_C, f"rerank_{name}_{self._suffix}")(*self._arguments, *arguments, torch.get_num_threads())

    def lists(self, length: int, queries_only: bool, keep: bool):
        lists, most = torch.empty(self.rows, length, dtype=torch.int32), torch.empty(self.rows)
        dist = torch.empty(self.num_query, self.rows - self.num_query) if keep else None
        settings = (queries_only, length, most, dist, torch.get_num_threads())
        lister = getattr(_C, f"RerankLists_{self._suffix}")(*self._arguments, *settings)
        for tile in steps(range(lister.tiles), "finding neighbours"):
            lister.fold(tile)
        lister.finish(lists)
        return lists, most, dist

    def entries(self, begin: Tensor, column: Tensor) -> Tensor:
        value = torch.empty(len(column))
        self._call("entries", begin, column, value)
        return value

    def block(self, start: int, stop: int) -> Tensor:
        dist = torch.empty(stop - start, self.rows - self.num_query)
        self._call("distances", start, torch.zeros(stop - start), dist)
        return dist


class Lists:
    """Lists of nearest rows that blocks of distances are folded into."""

    def __init__(self, rows: int, k: int):
        self.k = k
        self.slots = torch.empty(rows, k + SPARE, dtype=torch.int64)
        self.count = torch.zeros(rows, dtype=torch.int32)
        self.worst = torch.full((rows,), torch.inf)
        self.most = torch.full((rows,), -torch.inf)

    def fold(self, name: str, dist: Tensor, rows: slice, first: int, *, by_columns: bool = False, listed: bool = True):
        """Distances of some rows to the rows from ``first`` on: ``dist [rows, ...]``, or its transpose by columns."""
        state = (self.slots[rows], self.count[rows], self.worst[rows]) if listed else (None, None, None)
        if not _C.rerank_fold(dist, by_columns, first, self.k, *state, self.most[rows], torch.get_num_threads()):
            raise ValueError(f"{name}: expected finite distances, found one that is not")

    def finish(self, length: int, fill: int) -> Tensor:
        lists = torch.empty(len(self.slots), length, dtype=torch.int32)
        _C.rerank_finish(self.slots, self.count, fill, lists, torch.get_num_threads())
        return lists


class Products:
    """The float32 distances of the published code, ``||a||^2 + ||b||^2 - 2 a.b``, in blocks of rows."""

    def __init__(self, query: Tensor, gallery: Tensor, metric: str):
        self.metric = metric
        self.x = torch.cat([query, gallery]).float()
        if metric == "cosine":
            self.x = torch.nn.functional.normalize(self.x)
        self.rows, self.num_query = len(self.x), len(query)
        self.sq = self.x.square().sum(1)
        self.step = max(16, BLOCK // (4 * self.rows))

    def _from(self, start: int, stop: int) -> Tensor:
        """Rows of the whole matrix: where one block holds all, the very product of the published code."""
        out = product(self.x[start:stop], self.x, torch.empty(stop - start, self.rows))
        if self.metric == "cosine":
            return out.neg_().add_(1)
        out.mul_(-2).add_(self.sq[start:stop, None] + self.sq)
        return out.clamp_(min=0).sqrt_() if self.metric == "euclidean" else out

    def lists(self, length: int, queries_only: bool, keep: bool):
        q, n = self.num_query, self.rows
        state = Lists(n, min(length, q) if queries_only else length)
        dist = torch.empty(q, n - q) if keep else None
        for start in steps(range(0, n, self.step), "finding neighbours"):
            rows = slice(start, min(start + self.step, n))
            block = self._from(rows.start, rows.stop)
            state.fold("query", block[:, :q].contiguous(), rows, 0)
            state.fold("gallery", block[:, q:].contiguous(), rows, q, listed=not queries_only)
            if keep and start < q:
                dist[rows.start : min(rows.stop, q)] = block[: q - start, q:]
        return state.finish(length, q), state.most, dist

    def entries(self, begin: Tensor, column: Tensor) -> Tensor:
        value = torch.empty(len(column))
        for start in steps(range(0, len(begin) - 1, self.step), "weighing neighbours"):
            stop = min(start + self.step, self.rows)
            last = min(stop, len(begin) - 1)
            own = slice(int(begin[start]), int(begin[last]))
            row = torch.arange(last - start).repeat_interleave(begin[start : last + 1].diff())
            value[own] = self._from(start, stop)[row, column[own].long()]
        return value

    def block(self, start: int, stop: int) -> Tensor:
        first, parts = start - start % self.step, []
        for at in range(first, stop, self.step):  # the blocks of lists(), whose products have the same bits
            part = self._from(at, min(at + self.step, self.rows))
            parts.append(part[max(start - at, 0) : stop - at, self.num_query :])
        return torch.cat(parts)


class Matrices:
    """Given distances of queries to queries, queries to gallery, gallery to gallery (None: not asked for)."""

    def __init__(self, query_gallery: Tensor, query_query: Tensor, gallery_gallery: Tensor | None):
        self.across, self.queries, self.gallery = query_gallery, query_query, gallery_gallery
        self.num_query, self.rows = len(query_gallery), sum(query_gallery.shape)

    def lists(self, length: int, queries_only: bool, keep: bool):
        q, n = self.num_query, self.rows
        state = Lists(n, min(length, q) if queries_only else length)
        of_query, of_gallery = slice(0, q), slice(q, n)
        state.fold("query_query", self.queries, of_query, 0, by_columns=True)
        state.fold("query_gallery", self.across, of_query, q, listed=not queries_only)
        state.fold("query_gallery", self.across, of_gallery, 0, by_columns=True)
        if self.gallery is not None:
            state.fold("gallery_gallery", self.gallery, of_gallery, q, by_columns=True, listed=not queries_only)
        return state.finish(length, q), state.most, self.across.clone() if keep else None

    def entries(self, begin: Tensor, column: Tensor) -> Tensor:
        q = self.num_query
        column = column.long()
        row = torch.arange(len(begin) - 1).repeat_interleave(begin.diff())
        value = torch.empty(len(column))
        row_query, column_query = row < q, column < q
        for own, matrix, i, j in (
            (row_query & column_query, self.queries, column, row),
            (row_query & ~column_query, self.across, row, column - q),
            (~row_query & column_query, self.across, column, row - q),
            (~row_query & ~column_query, self.gallery, column - q, row - q),
        ):
            if bool(own.any()):
                value[own] = matrix[i[own], j[own]]
        return value

    def block(self, start: int, stop: int) -> Tensor:
        return self.across[start:stop].clone()


class Stacked:
    """One given matrix of all rows with all rows; the distance of row i to row j is ``dist[j, i]``."""

    def __init__(self, dist: Tensor, num_query: int):
        self.dist, self.num_query, self.rows = dist, num_query, len(dist)

    def lists(self, length: int, queries_only: bool, keep: bool):
        q = self.num_query
        state = Lists(self.rows, min(length, q) if queries_only else length)
        everyone = slice(0, self.rows)
        state.fold("dist", self.dist[:q], everyone, 0, by_columns=True)
        state.fold("dist", self.dist[q:], everyone, q, by_columns=True, listed=not queries_only)
        return state.finish(length, q), state.most, self.block(0, q) if keep else None

    def entries(self, begin: Tensor, column: Tensor) -> Tensor:
        row = torch.arange(len(begin) - 1).repeat_interleave(begin.diff())
        return self.dist[column.long(), row]

    def block(self, start: int, stop: int) -> Tensor:
        return self.dist[self.num_query :, start:stop].T.clone(memory_format=torch.contiguous_format)
