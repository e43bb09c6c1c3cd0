"""Search, evaluation and re-ranking of a gallery whose rows are spread over the processes of a group."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from vifast import _checks
from vifast._progress import steps
from vifast.retrieval._arguments import METRICS, as_tensor, check_finite, codes_of, positive
from vifast.retrieval._distances import Products
from vifast.retrieval._graph import graph
from vifast.retrieval._rerank import k_reciprocal
from vifast.retrieval._wire import Wire, attempt
from vifast.retrieval.gallery import Gallery
from vifast.retrieval.products import GalleryProducts, block_rows, check_sizes, finite_norms, origin_of, working_dtype
from vifast.retrieval.ranking import RankMetrics
from vifast.retrieval.rerank import check_norms, check_options, check_topk, to_device
from vifast.retrieval.search import distances, exclusion_blocks, nearest
from vifast.retrieval.sharded_ranking import ShardedRankFold
from vifast.retrieval.sharded_rerank import ShardedFeatures

QUERIES = 4096  # searched at a time


class ShardedGallery:
    r"""A gallery of which every process of a ``torch.distributed`` group holds some rows.

    Row numbers, and so ties, are those of the parts one after the other, in the order of ranks. Every call is made by
    all ranks together and returns on each of them the bits that one process with the whole gallery returns: keys are
    float64 or exact integers when they are merged, and float32 products have the same shape and place whoever makes
    them (:class:`vifast.retrieval.products.GalleryProducts`). The ranks must have one instruction set (``VIFAST_ISA``
    sets it) or one kind of GPU. An error on one rank is raised on all.

    Args:
        features: [n, D] rows of this rank, n may be 0; one dtype and D on all ranks. CPU tensors for gloo, CUDA tensors
            for nccl. A mapped file (:class:`Gallery`) is read as it is needed.
        ids: [n] identities of these rows, on all ranks or on none.
        cams: [n] cameras, likewise.
        group: a process group, or None for the default one.

    Attributes:
        features: the rows of this rank.
        first: number of its first row.
        total: rows of all ranks.
        ids: [total] int64 on the CPU, or None.
        cams: likewise.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.
        TypeError: features that are not floating point or of several dtypes, ids or cameras that are not integers.
        ValueError: shapes that do not fit, features that are not finite, ids or cameras on some ranks only, no row.

    Memory:
        16 bytes a row of the whole gallery beyond the rows of this rank.

    Source:
        Merging the k nearest of parts: Johnson et al. 2017 (faiss), section 5.4.

    Example:
        >>> import tempfile, torch, torch.distributed
        >>> torch.distributed.init_process_group("gloo", f"file://{tempfile.mktemp()}", rank=0, world_size=1)
        >>> gallery = ShardedGallery(torch.eye(3), ids=torch.tensor([4, 5, 6]))
        >>> gallery.search(torch.tensor([[0.0, 1.0, 2.0]]), 2)[1].tolist()
        [[2, 1]]
        >>> gallery.evaluate(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([5])).mean_ap
        0.5
        >>> torch.distributed.destroy_process_group()
    """

    def __init__(self, features, ids=None, cams=None, *, group=None):
        self._wire = Wire(group)
        parts, error = attempt(_part, features, ids, cams)
        self._wire.agree(error)
        self.features, ids, cams = parts
        kind = f"{self.features.size(1)} columns of {self.features.dtype}, "
        kind += ", ".join(f"{'no ' * (value is None)}{name}" for name, value in (("ids", ids), ("cams", cams)))
        self._wire.same("features, ids, cams", kind.encode())
        self._counts = counts = self._wire.gather(torch.tensor([len(self.features)])).flatten().tolist()
        self.first, self.total = sum(counts[: self._wire.rank]), sum(counts)
        if self.total == 0:
            raise ValueError("features: expected at least one row on one of the ranks")
        self._wire.agree(attempt(check_finite, "features", self.features, self.first)[1])
        self.ids, self.cams = (None if x is None else self._wire.gather_rows(x, counts) for x in (ids, cams))

    @classmethod
    def open(cls, path: str | os.PathLike, *, group=None) -> ShardedGallery:
        """Maps an even share of the rows of a gallery on disk, which every rank must see; errors as Gallery.open."""
        wire = Wire(group)
        gallery, error = attempt(Gallery.open, path)
        wire.agree(error)
        first, last = (len(gallery) * r // wire.size for r in (wire.rank, wire.rank + 1))
        parts = (None if x is None else x[first:last] for x in (gallery.features, gallery.ids, gallery.cams))
        return cls(*parts, group=group)

    def __len__(self) -> int:
        return self.total

    def search(
        self,
        query,
        k: int,
        *,
        metric: str = "cosine",
        exclude=None,
        chunk: int | None = None,
        source: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:func:`vifast.retrieval.search` in the whole gallery.

        Args:
            query: [Q, D] on the device of the features, the same on every rank; with ``source`` on that rank alone.
            k: neighbours per query, 1..total.
            metric: as in ``search``.
            exclude: bool [Q, total], or a callable for blocks of it; each rank asks for its own columns alone.
            chunk: as in ``search``.
            source: rank that has the queries and sends them to the others, which pass None; None: all have them.

        Returns:
            dist: [Q, k] and index [Q, k] on every rank, as ``search`` returns them.

        Raises:
            TypeError: as ``search``.
            ValueError: likewise; ``query`` or ``k`` that differ between ranks.
        """
        _, error = attempt(self._check_search, k, metric, chunk)
        self._wire.agree(error)
        query = self._queries(query, source, (int(k), metric, chunk))
        shape = [len(query), self.total]
        block, error = attempt(exclusion_blocks, exclude, shape, self.features.device)
        self._wire.agree(error)
        keys, index = [], []
        for start in range(0, len(query), QUERIES):
            rows = query.rows(start, start + QUERIES)

            def excluded(q0, q1, g0, g1, start=start):
                return block(start + q0, start + q1, g0, g1)

            part, error = attempt(self._nearest, rows, k, metric, excluded, chunk)
            self._wire.agree(error)
            nearest_keys, nearest_index = (self._wire.gather(x).transpose(0, 1).flatten(1) for x in part)
            # Parts come in the order of ranks, so a stable sort leaves equal keys in the order of their rows.
            order = nearest_keys.sort(dim=1, stable=True)[1][:, :k]
            keys.append(nearest_keys.gather(1, order))
            index.append(nearest_index.gather(1, order))
        return distances(torch.cat(keys), metric, self.features.dtype), torch.cat(index)

    def evaluate(
        self,
        query,
        query_ids,
        query_cams=None,
        *,
        metric: str = "cosine",
        exclude: str = "none",
        cmc: str = "plain",
        topk: int = 20,
        source: int | None = None,
    ) -> RankMetrics:
        """:func:`vifast.retrieval.evaluate` of the whole gallery, which must have identities.

        Args:
            query: [Q, D] on the device of the features, the same on every rank; with ``source`` on that rank alone.
            query_ids: [Q] identities, on every rank.
            query_cams: [Q] cameras, on every rank.
            metric: as in ``evaluate``.
            exclude: likewise.
            cmc: likewise.
            topk: likewise.
            source: as in :meth:`search`.

        Returns:
            :class:`RankMetrics`, on every rank.

        Raises:
            TypeError: as ``evaluate``.
            ValueError: likewise; a gallery without identities, arguments that differ between ranks.
        """
        _, error = attempt(_checks.one_of, "metric", metric, METRICS)
        self._wire.agree(error)
        query = self._queries(query, source, (metric, exclude, cmc))
        state, error = attempt(ShardedRankFold, self._wire, self, len(query), query_ids, query_cams, exclude, cmc, topk)
        self._wire.agree(error)
        self._wire.same("query_ids, query_cams, topk", state.fingerprint())
        dtype = working_dtype(self.features.dtype)
        origin = query.all(origin_of, (self.features.size(1),), dtype)
        sizes = query.all(_largest_norm, (1,), torch.float64)
        products, error = attempt(GalleryProducts, self.features, metric, origin, self.first, self.total)
        self._wire.agree(error)
        most = float(self._wire.gather(torch.tensor([products.most], dtype=torch.float64)).max())
        check_sizes(("query", "gallery"), float(sizes), most, dtype)
        step = block_rows(self.total, dtype)
        workspace = self.features.new_empty(min(step, len(query)), len(self.features), dtype=dtype)
        for start in steps(range(0, len(query), step), "ranking"):
            rows = query.rows(start, start + step)
            state.fold(products.fill(rows, workspace[: len(rows)]), start, products.linear)
        return state.metrics("query")

    def rerank(
        self,
        query,
        *,
        k1: int = 20,
        k2: int = 6,
        lambda_: float = 0.3,
        metric: str = "sqeuclidean",
        queries_only: bool = False,
        precision: str = "float32",
        topk: int | None = None,
        method: str = "k-reciprocal",
        alpha: float = 2.0,
        source: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """:func:`vifast.retrieval.rerank` with the whole gallery.

        Every row travels to every rank twice: once to be compared with the rows held there, once for the distances of
        the pairs that its neighbours name. What follows is sparse and done on every rank.

        Args:
            query: [Q, D] on the device of the features, the same on every rank; with ``source`` on that rank alone.
            k1: as in ``rerank``, like all that follow.
            k2: likewise.
            lambda_: likewise.
            metric: likewise.
            queries_only: likewise.
            precision: likewise; ``"reference"`` brings all rows to every rank, which makes all products itself: they
                are the platform's, of whole blocks of rows.
            topk: likewise.
            method: likewise.
            alpha: likewise.
            source: as in :meth:`search`.

        Returns:
            As ``rerank``, on every rank.

        Raises:
            TypeError: as ``rerank``.
            ValueError: likewise; arguments that differ between ranks.

        Memory:
            Beyond the rows held here: the queries, 4096 rows in transit, about 2 kB for every row of all ranks, and the
            output. Features on a GPU are brought to the CPU. ``precision="reference"`` holds all rows as float32.
        """
        settings, error = attempt(check_options, metric, method, k1, k2, lambda_, queries_only, precision, alpha)
        self._wire.agree(error)
        topk, error = attempt(check_topk, topk, self.total)
        self._wire.agree(error)
        query = self._queries(query, source, (settings, metric, method, alpha, topk))
        query, own = query.rows(0, len(query)).cpu(), self.features.cpu()
        for name, rows in (("query", query), ("gallery", own)):
            self._wire.agree(attempt(check_norms, name, rows)[1])
        features = ShardedFeatures(self._wire, query, own, self._counts, metric)
        if method == "k-reciprocal":
            source = Products(query, features.gathered(), metric) if settings.half else features
            result = k_reciprocal(source, settings, topk)
        else:
            cosine = features if metric == "cosine" else features.of("cosine")
            result = graph(features, cosine, settings.k1, settings.k2, alpha, topk)
        return to_device(self.features.device, result)

    def _check_search(self, k, metric, chunk) -> None:
        _checks.one_of("metric", metric, METRICS)
        if positive("k", k) > self.total:
            raise ValueError(f"k: expected at most {self.total}, the rows of gallery, got {k}")
        if chunk is not None:
            positive("chunk", chunk)

    def _nearest(self, rows, k, metric, excluded, chunk) -> tuple[Tensor, Tensor]:
        """The k nearest of this rank's rows; where there are fewer the rest has key +inf and row -1."""
        keys = rows.new_full((len(rows), k), torch.inf, dtype=torch.float64)
        index = torch.full((len(rows), k), -1, device=rows.device)
        held = min(k, len(self.features))
        if held:
            found = nearest(rows, self.features, held, metric, excluded, chunk, self.first, self.total)
            keys[:, :held], index[:, :held] = found
        return keys, index

    def _queries(self, query, source, call) -> _Queries:
        """The queries, checked on the ranks that have them; ``call``: what must not differ between ranks either."""
        query, error = attempt(self._check_query, query, source)
        self._wire.agree(error)
        told = repr((call, source)).encode()
        if source is None:
            told += repr(list(query.shape)).encode() + query.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        self._wire.same("query and options", told)
        return _Queries(self._wire, query, self.features, source)

    def _check_query(self, query, source) -> Tensor | None:
        if source is not None:
            _checks.count("source", source, 0)
            if source >= self._wire.size:
                raise ValueError(f"source: expected a rank below {self._wire.size}, got {source}")
            if self._wire.rank != source:
                if query is not None:
                    raise TypeError(f"query: expected None on ranks other than {source}, got {type(query).__name__}")
                return None
        query = as_tensor("query", query)
        _checks.rows("query", query)
        _checks.same_columns("query", query, "the gallery", self.features)
        if len(query) == 0:
            raise ValueError(f"query: expected at least one row, got {list(query.shape)}")
        check_finite("query", query)
        return query


class _Queries:
    """Queries that every rank has, or that rank ``source`` sends a block at a time."""

    def __init__(self, wire: Wire, query: Tensor | None, like: Tensor, source: int | None):
        self._wire, self._query, self._like, self._source = wire, query, like, source
        self._count = len(query) if source is None else int(self.all(_length, (1,), torch.int64))

    def __len__(self) -> int:
        return self._count

    def rows(self, start: int, stop: int) -> Tensor:
        stop = min(stop, self._count)
        return self.all(lambda query: query[start:stop], (stop - start, self._like.size(1)), self._like.dtype)

    def all(self, function, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """``function`` of the queries on every rank; it gives ``shape`` of ``dtype``."""
        if self._source is None:
            return function(self._query)
        value = None if self._query is None else function(self._query)
        return self._wire.broadcast(value, shape, dtype, self._source).to(self._like.device)


def _length(query: Tensor) -> Tensor:
    return torch.tensor([len(query)])


def _part(features, ids, cams) -> tuple[Tensor, Tensor | None, Tensor | None]:
    features = as_tensor("features", features)
    _checks.rows("features", features)
    if features.size(1) == 0:
        raise ValueError(f"features: expected at least one column, got {list(features.shape)}")
    ids = None if ids is None else codes_of("ids", ids, "features", len(features))
    cams = None if cams is None else codes_of("cams", cams, "features", len(features))
    return features.contiguous(), ids, cams


def _largest_norm(query: Tensor) -> Tensor:
    return finite_norms("query", query).max()[None]
