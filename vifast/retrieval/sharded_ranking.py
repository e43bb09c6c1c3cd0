"""Ranking metrics of a gallery that is spread over processes, from the keys that each has of its own rows."""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.retrieval._wire import Wire
from vifast.retrieval.ranking import RankFold, counts_on_gpu, offsets

NEVER = torch.iinfo(torch.int64).max


class ShardedRankFold(RankFold):
    """:class:`RankFold` for blocks [n, rows held here] of a matrix; every rank folds the same queries.

    Every rank knows the identities of all rows, and so which rows are the positives of a query. What travels is their
    keys, the number of rows ahead of each, and for the CMC of identities up to ``topk`` identities a query.
    """

    def __init__(self, wire: Wire, gallery, num_query, query_ids, query_cams, exclude, cmc, topk):
        if gallery.ids is None:
            raise ValueError("ids: expected a gallery with identities, got None")
        super().__init__(num_query, gallery.total, query_ids, gallery.ids, query_cams, gallery.cams, exclude, cmc, topk)
        self.wire, self.gallery_first = wire, gallery.first
        self.held = slice(gallery.first, gallery.first + len(gallery.features))
        self.identities = 1 + int(max(self.query_identity.max(), self.gallery_identity.max()))
        self.begin = offsets(torch.bincount(self.gallery_identity, minlength=self.identities))
        self.by_identity = self.gallery_identity.argsort(stable=True)

    def fingerprint(self) -> bytes:
        """Equal where the folds are."""
        codes = torch.cat([self.query_identity, self.exclusion.drop_camera])
        return repr((self.topk, codes.tolist())).encode()

    def fold(self, keys: Tensor, start: int, linear: tuple[Tensor, Tensor] | None = None) -> None:
        """As :meth:`RankFold.fold`; ``keys`` are overwritten."""
        if linear is not None and counts_on_gpu(keys):
            keys, linear = torch.addcmul(linear[1], linear[0], keys), None  # as one process does there
        keys, linear = keys.cpu(), [x.cpu() for x in linear or ()]
        rows = slice(start, start + len(keys))
        identity = self.query_identity[rows].long()
        count = self.begin[identity + 1] - self.begin[identity]
        begin, query = offsets(count), torch.arange(len(keys)).repeat_interleave(count)
        row = self.by_identity[torch.arange(len(query)) + (self.begin[identity] - begin[:-1])[query]]
        value = self.wire.add(self._own_keys(keys, rows, linear, begin, row))
        rank = 1 + self.wire.add(self._count(keys, begin, row, value))
        rank[value.isnan()] = 0
        first = torch.full((len(keys),), NEVER).scatter_reduce(0, query, rank.where(rank > 0, NEVER), "amin")
        first[first == NEVER] = 0
        if self.per_identity:
            first = self._identities_ahead(keys, value, row, query, rank, first)
        self.first[rows] = first
        _C.rank_summary(rank, begin, self.ap[rows], self.inp[rows])

    def _own_keys(self, keys, rows, linear, begin, row) -> Tensor:
        """Products become keys; those of the positives held here, 0 for the others."""
        value, bad = keys.new_zeros(len(row)), torch.zeros(len(keys), dtype=torch.bool)
        if keys.size(1):
            _of("rank_shard_keys", keys)(
                keys,
                *(linear or (None, None)),
                self.query_identity[rows],
                self.exclusion.drop_camera[rows],
                self.exclusion.gallery_camera[self.held],
                self.exclusion.own_only,
                self.gallery_first,
                begin,
                row,
                value,
                bad,
                torch.get_num_threads(),
            )
        error = ValueError(f"query: row {rows.start + int(bad.nonzero()[0])} holds a NaN") if bool(bad.any()) else None
        self.wire.agree(error)
        return value

    def _count(self, keys, begin, row, value) -> Tensor:
        """Rows held here ahead of every positive."""
        count = torch.zeros(len(row), dtype=torch.int64)
        if keys.size(1):
            _of("rank_shard_count", keys)(keys, self.gallery_first, begin, row, value, count, torch.get_num_threads())
        return count

    def _identities_ahead(self, keys, value, row, query, rank, first) -> Tensor:
        """The place of the true identity among identities, for queries whose first hit is not the first row."""
        best = (rank == first[query]) & (first[query] > 1)
        best_value, best_row = keys.new_zeros(len(keys)), torch.full((len(keys),), -1)
        best_value[query[best]], best_row[query[best]] = value[best], row[best]
        found = torch.full((len(keys), min(self.topk, self.identities)), -1, dtype=torch.int32)
        if keys.size(1):
            _of("rank_shard_identities", keys)(
                keys,
                self.gallery_first,
                self.gallery_identity[self.held],
                self.identities,
                best_value,
                best_row,
                found,
                torch.get_num_threads(),
            )
        ahead = self.wire.gather(found).transpose(0, 1).flatten(1).sort(dim=1)[0]
        new = torch.nn.functional.pad(ahead[:, 1:] != ahead[:, :-1], (1, 0), value=True) & (ahead >= 0)
        return torch.where(first > 1, 1 + new.sum(1).clamp(max=self.topk), first)


def _of(name: str, keys: Tensor):
    return getattr(_C, f"{name}_{str(keys.dtype).removeprefix('torch.')}")
