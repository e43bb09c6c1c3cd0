"""Exact nearest neighbours from tiles of products, without the query x gallery matrix."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vifast import _checks
from vifast.kernels import _C
from vifast.retrieval._arguments import METRICS, as_tensor, check_finite, features, positive
from vifast.retrieval.products import grid, keyed_rows, moved, origin_of, padded, working_dtype
from vifast.retrieval.search_cuda import can_search_cuda, search_cuda

TILE = 16 * 2**20  # bytes of products that exist at a time
STATE = 32 * 2**20  # bytes of candidates of the queries that are searched together
MOST_QUERIES, MOST_COLUMNS = 4096, 16384
HALF_FROM = 1 << 16  # elements of the gallery from which products of bfloat16 are tried, where the processor has them
COARSE = 32  # and given up where more than one candidate in so many had to be scored


def search(
    query,
    gallery,
    k: int,
    *,
    metric: str = "cosine",
    exclude: Tensor | np.ndarray | Callable[[int, int, int, int], Tensor] | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The k nearest gallery rows of every query, exactly, nearest first.

    Values are defined in float64 on the rows as given: ``cosine`` 1 - q.g / sqrt(q.q * g.g) (0 <= value <= 2; a zero
    row has cosine 0 with every row), ``euclidean`` ||q - g||, ``sqeuclidean`` ||q - g||^2, ``dot`` q.g, of which the
    largest are nearest. They are ordered before they are rounded to the output's type, equal ones by lower index.
    On the CPU a product finds the candidates up to a proven error and float64 decides among them: neither ``chunk``
    nor the number of threads can change a bit. The product is one of bfloat16 where the processor multiplies those, as
    long as it leaves few candidates, and of float32 otherwise. An NVIDIA card with the CUDA extension does the same,
    by products of float32 of any precision that PyTorch is set to, for k up to 2048, and finds the same bits. Other
    devices rank by float64 products, whose equal rows tie where the platform sums them in one order.

    Args:
        query: [Q, D] features.
        gallery: [G, D] features, same dtype and device.
        k: neighbours per query, 1..G.
        metric: one of the four above.
        exclude: rows that a query must not find: bool [Q, G], or a callable that takes (q0, q1, g0, g1) and returns the
            bool block [q1 - q0, g1 - g0] of it, called tile by tile.
        chunk: gallery rows per tile; None chooses.

    Returns:
        dist: [Q, k] float32 (float64 for float64 features).
        index: [Q, k] int64 rows of the gallery. Where ``exclude`` leaves fewer than k rows the rest has index -1 and
            distance +inf (-inf for ``dot``).

    Raises:
        TypeError: features that are not floating point or of two dtypes, ``exclude`` that is not bool.
        ValueError: shapes or devices that do not fit, ``k`` outside 1..G, ``chunk`` below 1, an unknown ``metric``,
            features that are not finite.

    Memory:
        About 50 MiB beyond the outputs, and a float32 copy of 4096 queries and of a tile's gallery rows; never Q x G.
        On a card about 320 MiB and such copies.

    Source:
        Result handlers behind a tiled product: Johnson et al. 2017 (faiss); error bound: Higham 2002, section 3.1.

    Example:
        >>> import torch
        >>> gallery = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0]])
        >>> dist, index = search(torch.tensor([[2.0, 0.0]]), gallery, 2)
        >>> dist.tolist(), index.tolist()
        ([[0.0, 0.0]], [[1, 2]])
    """
    _checks.one_of("metric", metric, METRICS)
    query, gallery = features(query, gallery)
    k = positive("k", k)
    if k > len(gallery):
        raise ValueError(f"k: expected at most {len(gallery)}, the rows of gallery, got {k}")
    chunk = None if chunk is None else positive("chunk", chunk)
    excluded = exclusion_blocks(exclude, [len(query), len(gallery)], query.device)
    check_finite("query", query)
    keys, index = nearest(query, gallery, k, metric, excluded, chunk, 0, len(gallery))
    return distances(keys, metric, query.dtype), index


def distances(keys: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """What ``search`` returns for the keys of :func:`nearest`, for features of ``dtype``."""
    if metric == "euclidean":
        keys = keys.sqrt()
    return (-keys if metric == "dot" else keys).to(working_dtype(dtype))


def nearest(query, gallery, k, metric, excluded, chunk, first: int, total: int) -> tuple[Tensor, Tensor]:
    """float64 keys [Q, k] (squared distance, 1 - cosine, or minus the product) in rising order, and their rows.

    The gallery is the rows from number ``first`` on of one of ``total``: ``excluded`` and the rows returned count from
    0. Keys order rows of different parts: the k nearest of the whole are among the k nearest of its parts.
    """
    if first:
        whole = excluded

        def excluded(q0, q1, g0, g1):
            return whole(q0, q1, first + g0, first + g1)

    if can_search_cuda(query, k):
        check_finite("gallery", gallery, first)
        keys, index = search_cuda(query, gallery, k, metric, excluded, chunk)
    elif query.device.type != "cpu":
        keys, index = _definition(query, gallery, k, metric, excluded, chunk, first, total)
    else:
        keys, index = _nearest_cpu(query, gallery, k, metric, excluded, chunk)
    return keys, torch.where(index < 0, -1, index + first)


def _nearest_cpu(query, gallery, k, metric, excluded, chunk) -> tuple[Tensor, Tensor]:
    query, gallery = query.contiguous(), gallery.contiguous()
    keys = torch.empty(len(query), k, dtype=torch.float64)
    index = torch.empty(len(query), k, dtype=torch.int64)
    room = 2 * k + 64
    step = max(1, min(MOST_QUERIES, STATE // (room * _C.TOPK_WORDS * 8)))
    half = _C.multiplies_bfloat16() and torch.backends.mkldnn.is_available() and gallery.numel() >= HALF_FROM
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        half = _search_block(
            query[rows], gallery, k, metric, excluded, start, chunk, room, keys[rows], index[rows], half
        )
    return keys, index


def exclusion_blocks(exclude, shape: list[int], device: torch.device) -> Callable[[int, int, int, int], Tensor | None]:
    """``exclude`` in one form: a function that gives the checked block of a tile, or None."""
    if exclude is None:
        return lambda *tile: None
    if not callable(exclude):
        exclude = as_tensor("exclude", exclude)
        if exclude.dtype != torch.bool:
            raise TypeError(f"exclude: expected a bool tensor or a callable, got {exclude.dtype}")
        if list(exclude.shape) != shape:
            raise ValueError(f"exclude: expected shape {shape}, got {list(exclude.shape)}")
        _check_device(exclude, device)
        return lambda q0, q1, g0, g1: exclude[q0:q1, g0:g1].contiguous()

    def block(q0, q1, g0, g1):
        part = as_tensor("exclude", exclude(q0, q1, g0, g1))
        if part.dtype != torch.bool or list(part.shape) != [q1 - q0, g1 - g0]:
            raise ValueError(
                f"exclude: expected the callable to return bool {[q1 - q0, g1 - g0]}, "
                f"got {part.dtype} {list(part.shape)}"
            )
        _check_device(part, device)
        return part.contiguous()

    return block


def _check_device(part: Tensor, device: torch.device) -> None:
    _checks.same_device("exclude", part, "query", torch.empty(0, device=device))


class _Rows:
    """Rows as the product takes them: float32, or rounded to bfloat16 with the norms of what that takes away."""

    def __init__(self, rows: Tensor, half: bool, threads: int):
        self.norm, self.lost = torch.empty(len(rows), dtype=torch.float64), None
        if half:
            self.data, self.lost = torch.empty_like(rows, dtype=torch.bfloat16), torch.empty_like(self.norm)
            _C.round_rows(rows, self.data, self.norm, self.lost, threads)
        else:
            self.data = _C.PackedRows(rows, None, threads)
            _C.row_norms(rows, self.norm, threads)

    def products(self, other: "_Rows", out: Tensor) -> Tensor:
        if self.lost is None:
            self.data.products(other.data, out, torch.get_num_threads())
            return out
        return torch.mm(self.data, other.data.T, out=out)


def _search_block(query, gallery, k, metric, excluded, start, chunk, room, keys, index, half) -> bool:
    """Writes the neighbours of the queries from ``start`` on: one tile of products at a time, folded at once.

    ``half``: products of bfloat16; returns whether they are still worth it.
    """
    threads = torch.get_num_threads()
    kind = "sqeuclidean" if metric == "euclidean" else metric
    suffix = str(gallery.dtype).removeprefix("torch.")
    fold, finish = getattr(_C, f"topk_fold_{suffix}"), getattr(_C, f"topk_finish_{suffix}")
    exact_query = query if query.dtype == torch.float64 else query.float()
    origin = origin_of(query) if kind == "sqeuclidean" else None
    keyed = keyed_rows(exact_query, kind, origin)
    own = _Rows(keyed, half, threads)
    n = len(query)
    slots = torch.empty(n, room, _C.TOPK_WORDS, dtype=torch.int64)
    count = torch.zeros(n, dtype=torch.int64)
    worst = torch.full((n,), torch.inf, dtype=torch.float64)
    width = min(chunk or max(256, min(TILE // ((2 if half else 4) * n), MOST_COLUMNS)), len(gallery))
    products = torch.empty(n * width, dtype=torch.bfloat16 if half else torch.float32)
    for first in range(0, len(gallery), width):
        rows = moved(gallery[first : first + width], origin)
        other = _Rows(rows, half, threads)
        if not bool(other.norm.isfinite().all()):
            check_finite("gallery", gallery)
        tile = own.products(other, products[: n * len(rows)].view(n, len(rows)))
        mask = excluded(start, start + n, first, first + len(rows))
        scored = fold(
            tile, first, kind, exact_query, own.norm, own.lost, gallery, other.norm, other.lost, mask, k, slots, count,
            worst, threads,
        )  # fmt: skip
        if half and scored * COARSE > tile.numel():
            half, own, products = False, _Rows(keyed, False, threads), products.float()
    finish(kind, exact_query, gallery, k, slots, count, worst, keys, index, threads)
    return half


def _definition(query, gallery, k, metric, excluded, chunk, base, total) -> tuple[Tensor, Tensor]:
    """Any device: float64 products tile by tile, each merged by a stable sort, which keeps lower indices first."""
    check_finite("gallery", gallery, base)
    width = chunk or MOST_COLUMNS
    step = max(1, TILE // (8 * width))
    keys, index = [], []
    for start in range(0, len(query), step):
        q = query[start : start + step].double()
        best = q.new_full((len(q), k), torch.inf)
        found = torch.full((len(q), k), -1, device=q.device)
        for columns, part, size in grid(base, len(gallery), total, width):
            tile = _keys(q, padded(gallery[columns].double(), part, size), metric)[:, part]
            mask = excluded(start, start + len(q), columns.start, columns.stop)
            rows = torch.arange(columns.start, columns.stop, device=q.device).expand_as(tile)
            if mask is not None:
                tile, rows = tile.masked_fill(mask, torch.inf), rows.masked_fill(mask, -1)
            best, order = torch.cat([best, tile], 1).sort(dim=1, stable=True)
            best, found = best[:, :k], torch.cat([found, rows], 1).gather(1, order[:, :k])
        keys.append(best)
        index.append(found)
    return torch.cat(keys), torch.cat(index)


def _keys(query: Tensor, gallery: Tensor, metric: str) -> Tensor:
    if metric in ("euclidean", "sqeuclidean"):
        return torch.cdist(query, gallery, compute_mode="donot_use_mm_for_euclid_dist").square()
    dot = query @ gallery.T
    if metric == "dot":
        return -dot
    norms = (query.square().sum(1, keepdim=True) * gallery.square().sum(1)).sqrt()
    return 1 - torch.where(norms > 0, dot / norms, 0.0).clamp(-1, 1)
