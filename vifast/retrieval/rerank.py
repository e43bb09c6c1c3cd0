"""Re-ranking of a gallery by whose neighbours each row shares, without an N x N matrix."""

import torch
from torch import Tensor

from vifast import _checks
from vifast.retrieval._arguments import as_tensor, features, positive
from vifast.retrieval._distances import Features, Matrices, Products, Stacked
from vifast.retrieval._graph import graph
from vifast.retrieval._rerank import Settings, k_reciprocal
from vifast.retrieval.products import finite_norms
from vifast.retrieval.rerank_cuda import DeviceFeatures, can_rerank_cuda, k_reciprocal_cuda

METRICS = ("sqeuclidean", "euclidean", "cosine")
PRECISIONS = ("float32", "reference")
METHODS = ("k-reciprocal", "gnn")
LARGEST_NORM = 1e18  # squares of longer rows overflow float32


def rerank(
    query,
    gallery,
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
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Distances of queries to a gallery, corrected by the neighbours they share (k-reciprocal encoding).

    All N = Q + G rows, queries first, are ranked together. With D the chosen distance and O_ij = D_ij / max_k D_ik:

    1. N_k(i) is the set of those among i's k + 1 nearest rows that have i among their own k + 1 nearest.
    2. Starting from N_k1(i), every member c of it adds N_round(k1/2)(c) if more than two thirds of that lie in N_k1(i).
    3. V_ij = exp(-O_ij) / sum over the expanded set, 0 outside; then V_i becomes the mean of V over i's k2 nearest rows
       (not with ``k2=1``).
    4. J_ij = 1 - t / (2 - t) with t = sum_c min(V_ic, V_jc), and the result is (1 - lambda) J + lambda O.

    Neighbours are exact: a float32 product nominates them, float64 on the rows as given decides, ties by lower index;
    distances within a row's set are direct differences. Neither the number of threads nor ``topk`` changes a bit.
    The procedure is transductive: the result for one query depends on all of them.

    ``method="gnn"`` is **another estimator**, not a faster form of this one, and ranks differently. With N(i, k) the k
    nearest rows of i, itself among them, and A_ij = 1 where j is in N(i, k1), else 0:

    1. H = (A + A^T) / 2.
    2. Twice: H_i = sum over j in N(i, k2) of max(0, cos_ij)^alpha H_j, scaled to unit length.
    3. The result is 1 - H_q . H_g: 0 for rows of equal neighbourhoods, 1 where nothing is shared.

    Args:
        query: [Q, D] features.
        gallery: [G, D] features, same dtype and device.
        k1: neighbours that must be mutual. From N rows on all are neighbours.
        k2: rows whose weights are averaged, the row itself included; at most N are.
        lambda_: weight of the original distance, 0 to 1; the graph method knows none.
        metric: ``"sqeuclidean"`` (as published), ``"euclidean"`` or ``"cosine"``: the distance D.
        queries_only: the masked mode: every neighbour is a query. Gallery rows follow, by index, where there are fewer
            than k1 + 1 queries; where there are more, the sets of gallery rows are empty and are skipped.
        precision: ``"float32"``, or ``"reference"``: the rounding of the published code, bit for bit. D is the float32
            ||a||^2 + ||b||^2 - 2 a.b, weights and Jaccard are rounded to float16 after every operation.
        topk: None for all distances, or how many of the nearest gallery rows to return for every query.
        method: ``"k-reciprocal"``, or ``"gnn"`` (neither ``queries_only`` nor ``precision="reference"``).
        alpha: exponent of the similarities in the graph method, at least 0.

    Returns:
        dist: [Q, G] float32; or with ``topk`` (dist [Q, topk], index [Q, topk]), nearest first, ties by lower index:
        what a stable sort of the whole matrix would give.

    Raises:
        TypeError: features that are not floating point or of two dtypes, arguments of the wrong type.
        ValueError: shapes or devices that do not fit, an empty set, features that are not finite or of a norm above
            1e18, k1 or k2 below 1, ``lambda_`` outside 0..1, ``topk`` outside 1..G, ``alpha`` below 0, an unknown name,
            an option that the method does not have.

    Memory:
        Two copies of the features, about 2 kB a row for its candidates, and the output; never N x N. With ``topk``
        a block of 256 MiB of distances (at least 64 queries) instead of Q x G, for a second product of queries with
        the gallery. ``precision="reference"`` makes the full product of N x N twice, in blocks of 64 MiB.
        On a GPU with the CUDA extension all is done there, in tiles of 256 MiB; ``precision="reference"``,
        ``method="gnn"`` and other devices bring the features to the CPU and the result back.

    Source:
        Zhong et al. 2017, Re-ranking person re-identification with k-reciprocal encoding; specs idkl 10. Graph: Zhang
        et al. 2020, Understanding image retrieval re-ranking: a graph neural network perspective.

    Example:
        >>> import torch
        >>> query = torch.tensor([[0.0, 0.0], [4.0, 4.0]])
        >>> gallery = torch.tensor([[0.1, 0.0], [4.0, 4.1], [2.5, 2.5]])
        >>> rerank(query, gallery, k1=1, k2=1).argsort(1).tolist()
        [[0, 2, 1], [1, 2, 0]]
    """
    settings = check_options(metric, method, k1, k2, lambda_, queries_only, precision, alpha)
    query, gallery = features(query, gallery)
    topk = check_topk(topk, len(gallery))
    for name, value in (("query", query), ("gallery", gallery)):
        check_norms(name, value)
    exact = method == "k-reciprocal" and not settings.half
    if exact and can_rerank_cuda(query, settings.widths(len(query) + len(gallery))[2]):
        return k_reciprocal_cuda(DeviceFeatures(query, gallery, metric), settings, topk)
    device = query.device
    source = (Products if settings.half else Features)(query.cpu(), gallery.cpu(), metric)
    if method == "k-reciprocal":
        return to_device(device, k_reciprocal(source, settings, topk))
    cosine = source if metric == "cosine" else Features(query.cpu(), gallery.cpu(), "cosine")
    return to_device(device, graph(source, cosine, settings.k1, settings.k2, alpha, topk))


def check_options(metric, method, k1, k2, lambda_, queries_only, precision, alpha) -> Settings:
    _checks.one_of("metric", metric, METRICS)
    _checks.one_of("method", method, METHODS)
    settings = _settings(k1, k2, lambda_, queries_only, precision)
    _checks.non_negative("alpha", alpha)
    if method == "gnn" and queries_only:
        raise ValueError("queries_only: expected False, which is all that the graph method has, got True")
    if method == "gnn" and settings.half:
        raise ValueError("precision: expected float32, which is all that the graph method has, got 'reference'")
    return settings


def check_norms(name: str, rows: Tensor) -> None:
    """Finite rows, and of norms whose squares float32 holds."""
    if len(rows) and float(finite_norms(name, rows).max()) > LARGEST_NORM:
        raise ValueError(f"{name}: expected rows of a norm of at most {LARGEST_NORM:g}")


def rerank_distance(
    dist,
    query_query=None,
    gallery_gallery=None,
    *,
    num_query: int | None = None,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    queries_only: bool = False,
    precision: str = "float32",
    topk: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r""":func:`rerank` from given distances, which need not come of features.

    Args:
        dist: [Q, G] distances of queries to the gallery; or the stacked [N, N] of all rows, queries first, with
            ``num_query``.
        query_query: [Q, Q] distances of queries to queries.
        gallery_gallery: [G, G] distances of the gallery to itself. May be None with ``queries_only`` and more than k1
            queries.
        num_query: Q, where ``dist`` is stacked.
        k1: as in :func:`rerank`.
        k2: likewise.
        lambda_: likewise.
        queries_only: likewise.
        precision: likewise; ``"float32"`` is the same arithmetic on ``dist`` without the rounding to float16.
        topk: likewise.

    Returns:
        As :func:`rerank`. Where a stacked matrix is not symmetric, the distance of row i to row j is ``dist[j, i]``.

    Raises:
        TypeError: matrices that are not floating point, arguments of the wrong type.
        ValueError: shapes that do not fit, a missing matrix, distances that are not finite, and as :func:`rerank`.

    Memory:
        About 2 kB a row and the output. Matrices of another dtype than float32, or not contiguous, are copied.

    Source:
        As :func:`rerank`.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.0, 4.0, 0.1, 4.1, 2.5])
        >>> rerank_distance((x[:, None] - x).square(), num_query=2, k1=1, k2=1).argsort(1).tolist()
        [[0, 2, 1], [1, 2, 0]]
    """
    settings = _settings(k1, k2, lambda_, queries_only, precision)
    dist = _matrix("dist", dist)
    if num_query is None:
        source = _three(dist, query_query, gallery_gallery, settings)
    else:
        source = _one(dist, query_query, gallery_gallery, num_query)
    topk = check_topk(topk, source.rows - source.num_query)
    return to_device(dist.device, k_reciprocal(source, settings, topk))


def _settings(k1, k2, lambda_, queries_only, precision) -> Settings:
    _checks.one_of("precision", precision, PRECISIONS)
    _checks.within("lambda_", lambda_, 0, 1)
    _checks.flag("queries_only", queries_only)
    return Settings(positive("k1", k1), positive("k2", k2), float(lambda_), queries_only, precision == "reference")


def check_topk(topk, gallery: int) -> int | None:
    if topk is None:
        return None
    topk = positive("topk", topk)
    if topk > gallery:
        raise ValueError(f"topk: expected at most {gallery}, the rows of gallery, got {topk}")
    return topk


def _matrix(name: str, value, shape: list[int] | None = None) -> Tensor:
    value = as_tensor(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point matrix, got {value.dtype}")
    if value.dim() != 2 or value.numel() == 0:
        raise ValueError(f"{name}: expected a matrix of at least one row and column, got shape {list(value.shape)}")
    if shape is not None and list(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {list(value.shape)}")
    return value.cpu().float().contiguous() if shape is not None else value


def _three(dist: Tensor, query_query, gallery_gallery, settings: Settings) -> Matrices:
    q, g = dist.shape
    if query_query is None:
        raise ValueError("query_query: expected distances of queries to queries, or num_query and a stacked dist")
    # Lists of queries alone name no gallery row where there are enough queries.
    if gallery_gallery is None and not (settings.queries_only and q > settings.k1):
        raise ValueError(
            "gallery_gallery: expected distances of the gallery to itself (not needed with queries_only and more than "
            f"k1 = {settings.k1} queries), got None"
        )
    within = None if gallery_gallery is None else _matrix("gallery_gallery", gallery_gallery, [g, g])
    return Matrices(_matrix("dist", dist, [q, g]), _matrix("query_query", query_query, [q, q]), within)


def _one(dist: Tensor, query_query, gallery_gallery, num_query) -> Stacked:
    if query_query is not None or gallery_gallery is not None:
        raise ValueError("num_query: expected None with query_query and gallery_gallery, which say it already")
    num_query = positive("num_query", num_query)
    n = len(dist)
    if num_query >= n:
        raise ValueError(f"num_query: expected less than {n}, the rows of dist, got {num_query}")
    return Stacked(_matrix("dist", dist, [n, n]), num_query)


def to_device(device: torch.device, result):
    return tuple(x.to(device) for x in result) if isinstance(result, tuple) else result.to(device)
