"""What re-ranking needs of a gallery that is spread over processes: lists, largest distances, listed pairs."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.retrieval._distances import Keyed
from vifast.retrieval._wire import Wire, attempt
from vifast.retrieval.products import working_dtype
from vifast.retrieval.search import nearest

ROWS = 4096  # sent to all ranks at a time
COLUMNS = 16384  # of this rank that are multiplied at a time


class ShardedFeatures:
    """:class:`vifast.retrieval._distances.Features` for queries that all ranks have and a gallery that is spread.

    Rows are numbered as there, queries first. Every row travels to every rank, which compares it with the rows that it
    holds; rank 0 also holds the queries. Lists merge by float64 keys, largest distances by their maximum, and every
    pair is computed by one rank, from its two rows and an origin that all ranks share.
    """

    def __init__(self, wire: Wire, query: Tensor, own: Tensor, counts: list[int], metric: str):
        self.wire, self.query, self.own, self.metric = wire, query, own, metric
        self.counts, self.own_first = counts, sum(counts[: wire.rank])
        self.num_query, self.rows = len(query), len(query) + sum(counts)
        self.dtype = working_dtype(query.dtype)
        self.keyed = Keyed(query.to(self.dtype), metric)
        # (number of the first row, rows): the parts of all rows that this rank holds.
        self.held = [(0, query)] * (wire.rank == 0) + [(self.num_query + self.own_first, own)] * bool(len(own))

    def of(self, metric: str) -> "ShardedFeatures":
        """The same rows by another metric."""
        return ShardedFeatures(self.wire, self.query, self.own, self.counts, metric)

    def gathered(self) -> Tensor:
        """The gallery's rows of all ranks."""
        return torch.cat([rows for first, rows in self._all_rows() if first >= self.num_query])

    def lists(self, length: int, queries_only: bool, keep: bool):
        q, n = self.num_query, self.rows
        k = min(length, q) if queries_only else length
        lists, most = torch.empty(n, length, dtype=torch.int32), torch.zeros(n)
        lists[:, k:] = torch.arange(q, q + length - k)
        dist = torch.empty(q, n - q) if keep else None
        for first, rows in self._all_rows():
            own = slice(first, first + len(rows))
            kept = keep and first < q
            among = first < q or not queries_only or q < length  # its largest distance is looked for in the gallery too
            part, error = attempt(self._compare, rows, k, not queries_only, among, kept)
            self.wire.agree(error)
            keys, index, most[own], block = part
            keys, index = (self.wire.gather(x).transpose(0, 1).flatten(1) for x in (keys, index))
            order = keys.sort(dim=1, stable=True)[1][:, :k]
            lists[own, :k] = index.gather(1, order).int()
            most[own] = self.wire.gather(most[own]).amax(0)
            if kept:
                dist[own] = self.wire.gather_rows(block.T.contiguous(), self.counts).T
        return lists, most, dist

    def entries(self, begin: Tensor, column: Tensor) -> Tensor:
        value, last = torch.zeros(len(column)), len(begin) - 1
        for first, rows in self._all_rows():
            if first >= last:
                break
            left = rows[: last - first].to(self.dtype)
            for start, held in self.held:
                self._entries_of(left, begin[first : first + len(left) + 1], column, start, held, value)
        return self.wire.add(value)  # each was written by one rank

    def block(self, start: int, stop: int) -> Tensor:
        rows = self.query[start:stop]
        part = self._distances(rows.to(self.dtype), torch.zeros(len(rows)))
        return self.wire.gather_rows(part.T.contiguous(), self.counts).T.contiguous()

    def _all_rows(self) -> Iterator[tuple[int, Tensor]]:
        """Blocks of all rows by rising number, on every rank."""
        for start in range(0, self.num_query, ROWS):
            yield start, self.query[start : start + ROWS]
        first = self.num_query
        for rank, count in enumerate(self.counts):
            for start in range(0, count, ROWS):
                stop = min(start + ROWS, count)
                sent = self.own[start:stop] if rank == self.wire.rank else None
                shape = (stop - start, self.query.size(1))
                yield first + start, self.wire.broadcast(sent, shape, self.query.dtype, rank).cpu()
            first += count

    def _compare(self, rows: Tensor, k: int, listed: bool, among: bool, keep: bool):
        """(keys, numbers) of the k nearest rows held here, +inf and -1 where there are fewer; the largest distance to
        them; with ``keep`` distances to the gallery's. ``listed``, ``among``: the gallery counts for either."""
        keys = torch.full((len(rows), 2 * k), torch.inf, dtype=torch.float64)
        index = torch.full((len(rows), 2 * k), -1)
        for part, (start, held) in enumerate(self.held):
            if start >= self.num_query and not listed:
                continue
            most = min(k, len(held))
            found = nearest(rows, held, most, self.metric, lambda *tile: None, None, 0, len(held))
            keys[:, part * k : part * k + most] = found[0]
            index[:, part * k : part * k + most] = found[1] + start
        order = keys.sort(dim=1, stable=True)[1][:, :k]
        left, largest, block = rows.to(self.dtype), torch.zeros(len(rows)), None
        if self.wire.rank == 0:
            for start in range(0, self.num_query, COLUMNS):
                right = self.query[start : start + COLUMNS].to(self.dtype)
                self.keyed.pairs(left, right, largest, None)
        if among:
            block = self._distances(left, largest, keep)
        return keys.gather(1, order), index.gather(1, order), largest, block

    def _distances(self, left: Tensor, most: Tensor, keep: bool = True) -> Tensor | None:
        """Of rows to the gallery rows held here; ``most`` rises to the largest of each row."""
        out = torch.empty(len(left), len(self.own)) if keep else None
        for start in range(0, len(self.own), COLUMNS):
            right = self.own[start : start + COLUMNS].to(self.dtype)
            part = torch.empty(len(left), len(right)) if keep else None
            self.keyed.pairs(left, right, most, part)
            if keep:
                out[:, start : start + COLUMNS] = part
        return out

    def _entries_of(self, rows: Tensor, begin: Tensor, column: Tensor, first: int, held: Tensor, value: Tensor) -> None:
        """Writes the distances of some rows to those of their columns that are ``held``, from number ``first`` on."""
        wanted = column[begin[0] : begin[-1]].long() - first
        here = ((wanted >= 0) & (wanted < len(held))).nonzero().flatten()
        if len(here) == 0:
            return
        chosen, at = torch.unique(wanted[here], return_inverse=True)
        both = torch.cat([rows, held[chosen].to(self.dtype)])
        row = torch.searchsorted(begin - begin[0], here, right=True) - 1
        local = torch.nn.functional.pad(torch.bincount(row, minlength=len(rows)).cumsum(0), (1, 0))
        out = torch.empty(len(here))
        function = _C.rerank_entries_float64 if self.dtype == torch.float64 else _C.rerank_entries_float32
        columns = (at + len(rows)).int()
        function(both, both.float(), None, self.metric, len(rows), local, columns, out, torch.get_num_threads())
        value[int(begin[0]) + here] = out
