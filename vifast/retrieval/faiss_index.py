"""Galleries as faiss indexes, for approximate search where an exact one takes too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vifast import _checks
from vifast.retrieval._arguments import METRICS, as_tensor, check_finite, positive

if TYPE_CHECKING:
    import faiss

ROWS = 65536  # handed to faiss at a time
OF_CODE = {"METRIC_INNER_PRODUCT": "dot", "METRIC_L2": "sqeuclidean"}


def to_faiss(gallery, *, metric: str = "cosine", factory: str = "Flat", train_rows: int = 262_144) -> faiss.Index:
    r"""A faiss index of a gallery; row i is number i.

    faiss knows inner products and squared distances: ``"dot"`` is the first, ``"sqeuclidean"`` and ``"euclidean"`` are
    the second, and ``"cosine"`` is the inner product of rows of unit length (a zero row stays zero). Search it with
    :func:`search_faiss`, which scales queries and results likewise.

    Args:
        gallery: [G, D] features, or a :class:`vifast.retrieval.Gallery`.
        metric: one of the four.
        factory: what ``faiss.index_factory`` understands. ``"Flat"`` is exact up to float32, ``"HNSW32"`` or
            ``"IVF4096,Flat"`` look at a part of the gallery, ``"IVF4096,PQ64"`` also compresses it.
        train_rows: evenly spaced rows to train on where the index is trained, at most.

    Returns:
        The index, on the CPU.

    Raises:
        ImportError: faiss is not installed.
        TypeError: features that are not floating point.
        ValueError: shapes that do not fit, features that are not finite, an unknown metric, a factory string that
            faiss does not understand or that does not fit the gallery.

    Memory:
        The index, the rows it is trained on, and 65,536 rows at a time: a mapped gallery is not read whole.

    Source:
        Johnson et al. 2017 (faiss).

    Example:
        >>> import torch
        >>> index = to_faiss(torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0]]), metric="euclidean")
        >>> dist, rows = search_faiss(index, torch.tensor([[2.0, 0.0]]), 2, metric="euclidean")
        >>> dist.tolist(), rows.tolist()
        ([[1.0, 1.0]], [[1, 2]])
    """
    faiss = _faiss()
    _checks.one_of("metric", metric, METRICS)
    features = _features("gallery", getattr(gallery, "features", gallery))
    train_rows = positive("train_rows", train_rows)
    code = faiss.METRIC_INNER_PRODUCT if metric in ("cosine", "dot") else faiss.METRIC_L2
    try:
        index = faiss.index_factory(features.size(1), factory, code)
        if not index.is_trained:
            index.train(_rows(features[:: -(-len(features) // train_rows)], metric))
        for start in range(0, len(features), ROWS):
            index.add(_rows(features[start : start + ROWS], metric))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"factory: {factory!r} does not make an index of this gallery ({_line(error)})") from error
    return index


def from_faiss(index: faiss.Index) -> tuple[Tensor, str]:
    r"""The rows of a faiss index and the metric they are compared by.

    Args:
        index: an index on the CPU that keeps its rows, or can rebuild them; compressed ones give what is left of them.

    Returns:
        features: [G, D] float32, for :class:`vifast.retrieval.Gallery`. What :func:`to_faiss` made of a ``"cosine"``
            gallery gives rows of unit length.
        metric: ``"dot"`` or ``"sqeuclidean"``.

    Raises:
        ImportError: faiss is not installed.
        TypeError: not an index.
        ValueError: an empty index, another metric, rows that cannot be rebuilt.

    Memory:
        The features.

    Example:
        >>> import torch
        >>> features, metric = from_faiss(to_faiss(torch.eye(2), metric="dot"))
        >>> features.tolist(), metric
        ([[1.0, 0.0], [0.0, 1.0]], 'dot')
    """
    metric = _metric_of(_faiss(), index)
    if index.ntotal == 0:
        raise ValueError("index: expected at least one row, got an empty one")
    features = torch.empty(index.ntotal, index.d)
    try:
        if hasattr(index, "make_direct_map"):  # of inverted lists: where row i is
            index.make_direct_map()
        index.reconstruct(0)  # what cannot be rebuilt says so here; reconstruct_n would end the process
        for start in range(0, index.ntotal, ROWS):
            rows = features[start : start + ROWS]
            index.reconstruct_n(start, len(rows), rows.numpy())
    except RuntimeError as error:
        raise ValueError(f"index: {type(index).__name__} cannot rebuild its rows ({_line(error)})") from error
    return features, metric


def search_faiss(index: faiss.Index, query, k: int, *, metric: str = "cosine") -> tuple[Tensor, Tensor]:
    r"""The k nearest rows that a faiss index finds, with the distances of :func:`vifast.retrieval.search`.

    Args:
        index: from :func:`to_faiss` with the same ``metric``, or any other: inner products for ``"cosine"`` (of rows of
            unit length) and ``"dot"``, squared distances for the Euclidean metrics.
        query: [Q, D] features.
        k: neighbours per query.
        metric: one of the four.

    Returns:
        dist: [Q, k] float32; ``"cosine"`` 1 - product, ``"dot"`` the product, as ``search``.
        index: [Q, k] int64; -1 with distance +inf (-inf for ``"dot"``) where the index found fewer.

    Raises:
        ImportError: faiss is not installed.
        TypeError: not an index, features that are not floating point.
        ValueError: shapes that do not fit, features that are not finite, ``k`` below 1, an index of another metric.

    Memory:
        The outputs and a copy of the queries.

    Example:
        >>> import torch
        >>> search_faiss(to_faiss(torch.eye(3)), torch.tensor([[0.0, 5.0, 0.0]]), 1)
        (tensor([[0.]]), tensor([[1]]))
    """
    faiss = _faiss()
    _checks.one_of("metric", metric, METRICS)
    products = _metric_of(faiss, index) == "dot"
    if products != (metric in ("cosine", "dot")):
        kind = "products" if products else "distances"
        raise ValueError(f"metric: expected one of an index of {kind}, got {metric!r}")
    query, k = _features("query", query), positive("k", k)
    if query.size(1) != index.d:
        raise ValueError(f"query: expected {index.d} columns as in the index, got {list(query.shape)}")
    dist, rows = (torch.from_numpy(x) for x in index.search(_rows(query, metric), k))
    if metric == "cosine":
        dist = (1 - dist).clamp(0, 2)
    elif metric == "euclidean":
        dist = dist.clamp(min=0).sqrt()
    return dist.masked_fill(rows < 0, -torch.inf if metric == "dot" else torch.inf), rows


def _faiss():
    try:
        import faiss
    except ImportError as error:
        raise ImportError("faiss is not installed: pip install 'vifast[faiss]' (or faiss-gpu)") from error
    return faiss


def _features(name: str, value) -> Tensor:
    value = as_tensor(name, value)
    _checks.rows(name, value)
    if value.numel() == 0:
        raise ValueError(f"{name}: expected at least one row and one column, got {list(value.shape)}")
    check_finite(name, value)
    return value


def _rows(features: Tensor, metric: str):
    rows = features.cpu().float()
    if metric == "cosine":
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
        rows = torch.where(norm > 0, rows / norm, 0.0).float()
    return rows.contiguous().numpy()


def _metric_of(faiss, index) -> str:
    if not isinstance(index, faiss.Index):
        raise TypeError(f"index: expected a faiss index, got {type(index).__name__}")
    for code, metric in OF_CODE.items():
        if index.metric_type == getattr(faiss, code):
            return metric
    raise ValueError(f"index: expected inner products or squared distances, got metric {index.metric_type}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
