"""Accumulates ranking metrics from blocks of a query x gallery matrix that is never held whole."""

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vifast import _checks
from vifast.kernels import _C
from vifast.kernels._extension import _CUDA
from vifast.retrieval._arguments import codes_of, encoded, positive
from vifast.retrieval.exclude import Exclusion

CMC = ("plain", "identity")


@dataclass(frozen=True)
class RankMetrics:
    """How well a gallery was ranked. Shares are fractions of 1; tensors are float64 on the CPU.

    Attributes:
        cmc: [topk]; ``cmc[k - 1]`` is the share of valid queries whose first hit is among the first k.
        mean_ap: mean of ``ap`` over the valid queries.
        mean_inp: mean of ``inp`` over the valid queries.
        num_valid: queries with at least one positive that was not excluded.
        ap: [Q] average precision, the mean over positives of k / rank_k; NaN for an invalid query.
        inp: [Q] inverse negative penalty, number of positives / rank of the last one; NaN for an invalid query.
    """

    cmc: Tensor
    mean_ap: float
    mean_inp: float
    num_valid: int
    ap: Tensor
    inp: Tensor


class RankFold:
    """State of one evaluation: fold blocks of rows in any order, then read ``metrics()``."""

    def __init__(self, num_query, num_gallery, query_ids, gallery_ids, query_cams, gallery_cams, exclude, cmc, topk):
        _checks.one_of("cmc", cmc, CMC)
        self.topk = positive("topk", topk)
        self.per_identity = cmc == "identity"
        ids = codes_of("query_ids", query_ids, "query", num_query)
        other = codes_of("gallery_ids", gallery_ids, "gallery", num_gallery)
        self.exclusion = Exclusion.of(exclude, query_cams, gallery_cams, num_query, num_gallery)
        self.query_identity, self.gallery_identity = encoded(ids, other)
        self.ap = torch.empty(num_query, dtype=torch.float64)
        self.inp = torch.empty(num_query, dtype=torch.float64)
        self.first = torch.empty(num_query, dtype=torch.int64)

    def fold(self, keys: Tensor, start: int, linear: tuple[Tensor, Tensor] | None = None) -> None:
        """Rows ``start ..`` of the matrix: ``keys [n, G]``, smaller is nearer.

        With ``linear = (scale [G], bias [G])`` the keys are ``scale * keys + bias`` instead.
        """
        rows = slice(start, start + len(keys))
        if keys.dtype not in (torch.float32, torch.float64):
            keys = keys.float()
        if counts_on_gpu(keys):
            self._fold_cuda(keys if linear is None else torch.addcmul(linear[1], linear[0], keys), rows)
        else:
            self._fold_cpu(keys.cpu().contiguous(), rows, *(x.cpu() for x in linear or ()))

    def _fold_cpu(self, keys: Tensor, rows: slice, scale: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.count_ranks(keys, rows, scale, bias, None, self.ap, self.inp, self.first)

    def count_ranks(self, keys: Tensor, rows: slice, scale, bias, member, ap, inp, first) -> None:
        """C++ for keys on the CPU. ``member`` [G] of up to 16 trials makes the results [Q, trials] (csrc/ranking.h)."""
        function = _C.rank_fold_float32 if keys.dtype == torch.float32 else _C.rank_fold_float64
        function(
            keys,
            scale,
            bias,
            self.query_identity[rows],
            self.gallery_identity,
            self.exclusion.drop_camera[rows],
            self.exclusion.gallery_camera,
            self.exclusion.own_only,
            self.per_identity,
            self.topk,
            member,
            ap[rows],
            inp[rows],
            first[rows],
            torch.get_num_threads(),
        )

    def part(self, columns: Tensor) -> "RankFold":
        """The state of another evaluation, of some of the gallery's rows."""
        other = copy.copy(self)
        other.gallery_identity = self.gallery_identity[columns]
        camera = self.exclusion.gallery_camera[columns]
        other.exclusion = dataclasses.replace(self.exclusion, gallery_camera=camera)
        other.ap, other.inp, other.first = (torch.empty_like(x) for x in (self.ap, self.inp, self.first))
        return other

    def _fold_cuda(self, keys: Tensor, rows: slice) -> None:
        """Ranks are counted where the keys are; what follows from a query's few ranks is the CPU's arithmetic."""
        identities = 1 + int(max(self.query_identity.max(), self.gallery_identity.max()))
        counts = torch.bincount(self.gallery_identity, minlength=identities)
        slot = offsets(counts[self.query_identity[rows]])
        rank = keys.new_empty(int(slot[-1]), dtype=torch.int64)
        first = keys.new_empty(len(keys), dtype=torch.int64)
        words = (identities + 31) // 32
        function = _CUDA.rank_count_float32 if keys.dtype == torch.float32 else _CUDA.rank_count_float64
        function(
            keys.contiguous(),
            self.query_identity[rows].to(keys.device),
            self.gallery_identity.to(keys.device),
            self.exclusion.drop_camera[rows].to(keys.device),
            self.exclusion.gallery_camera.to(keys.device),
            self.exclusion.own_only,
            offsets(counts).to(keys.device),
            self.gallery_identity.argsort(stable=True).to(keys.device),
            slot.to(keys.device),
            rank,
            first,
            keys.new_zeros(len(keys), words, dtype=torch.int32) if self.per_identity else None,
            torch.cuda.current_stream(keys.device).cuda_stream,
        )
        self.first[rows] = first.cpu()
        _C.rank_summary(rank.cpu(), slot, self.ap[rows], self.inp[rows])

    def metrics(self, name: str) -> RankMetrics:
        """Means over the valid queries. ``name`` is the argument to blame for a NaN."""
        return metrics_of(self.ap, self.inp, self.first, self.topk, name)


def counts_on_gpu(keys: Tensor) -> bool:
    return keys.device.type == "cuda" and _CUDA is not None


def metrics_of(ap: Tensor, inp: Tensor, first: Tensor, topk: int, name: str) -> RankMetrics:
    """Metrics of all queries from what was folded for each."""
    if bool((first < 0).any()):
        raise ValueError(f"{name}: row {int((first < 0).nonzero()[0])} holds a NaN")
    valid = first > 0
    count = int(valid.sum())
    if count == 0:
        raise ValueError("query_ids: expected a query with a positive that is not excluded, found none")
    first = first[valid]
    hits = torch.bincount(first[first <= topk] - 1, minlength=topk)
    return RankMetrics(
        cmc=hits.cumsum(0).double() / count,
        mean_ap=float(ap[valid].mean()),
        mean_inp=float(inp[valid].mean()),
        num_valid=count,
        ap=ap,
        inp=inp,
    )


def offsets(counts: Tensor) -> Tensor:
    """Where each of consecutive groups begins, and where the last one ends."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
