"""CMC, mean average precision and mean inverse negative penalty of ranked galleries, without sorting them."""

import torch
from torch import Tensor

from vifast import _checks
from vifast._progress import steps
from vifast.kernels import _C
from vifast.retrieval._arguments import METRICS, as_tensor, features
from vifast.retrieval.products import GalleryProducts, block_rows, check_sizes, finite_norms, origin_of
from vifast.retrieval.ranking import RankFold, RankMetrics


def evaluate_distance(
    dist,
    query_ids,
    gallery_ids,
    query_cams=None,
    gallery_cams=None,
    *,
    exclude: str = "none",
    cmc: str = "plain",
    topk: int = 20,
) -> RankMetrics:
    r"""CMC, mAP and mINP of a given distance matrix.

    For every query, rank_1 < rank_2 < ... are the positions of its positives (gallery rows of its identity) in the
    gallery ordered by rising distance, ties by lower index, without the excluded rows. Then AP = mean_k k / rank_k and
    INP = number of positives / last rank. A query without a positive is invalid and counts nowhere.
    A rank is counted (gallery rows nearer than the positive), never sorted for.

    Args:
        dist: [Q, G], float32 or float64 compared as they are, half types as float32. Smaller is nearer; infinities are
            ordinary values.
        query_ids: [Q] identities, any integer type.
        gallery_ids: [G] likewise.
        query_cams: [Q] cameras, needed by every ``exclude`` but ``"none"``.
        gallery_cams: [G] likewise.
        exclude: ``"none"``; ``"same_camera"`` drops gallery rows of the query's camera, ``"same_id_camera"`` those
            that also have its identity; ``"sysu"`` drops gallery camera 2 for query camera 3.
        cmc: ``"plain"`` counts the first positive among all rows; ``"identity"`` keeps every identity's nearest row
            only and counts the place of the true identity among identities.
        topk: length of the CMC curve. Beyond the gallery's length it stays at its last value.

    Returns:
        :class:`RankMetrics`.

    Raises:
        TypeError: a matrix that is not floating point, ids or cameras that are not integers.
        ValueError: shapes that do not fit, unknown ``exclude`` or ``cmc``, missing cameras, ``topk`` below 1, a NaN in
            ``dist``, no valid query.

    Memory:
        One row of the matrix per thread. A matrix that is not contiguous or of a half type passes through a workspace
        of 64 MiB, and so does one on a GPU: with the CUDA extension it is counted there, otherwise it comes to the CPU.

    Source:
        Protocols: specs idkl 10 (SYSU-MM01: Wu et al. 2017; mINP: Ye et al. 2021, AGW).

    Example:
        >>> import torch
        >>> dist = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        >>> result = evaluate_distance(dist, torch.tensor([7]), torch.tensor([7, 5, 7, 5]), topk=2)
        >>> result.cmc.tolist(), round(result.mean_ap, 4), round(result.mean_inp, 4)
        ([1.0, 1.0], 0.8333, 0.6667)
    """
    dist = as_tensor("dist", dist)
    if not dist.is_floating_point():
        raise TypeError(f"dist: expected a floating-point matrix, got {dist.dtype}")
    if dist.dim() != 2 or dist.numel() == 0:
        raise ValueError(f"dist: expected shape [Q, G] with at least one row and column, got {list(dist.shape)}")
    state = RankFold(*dist.shape, query_ids, gallery_ids, query_cams, gallery_cams, exclude, cmc, topk)
    in_place = dist.device.type == "cpu" and dist.is_contiguous() and dist.dtype in (torch.float32, torch.float64)
    step = len(dist) if in_place else block_rows(dist.size(1), dist.dtype)
    for start in steps(range(0, len(dist), step), "ranking"):
        state.fold(dist[start : start + step], start)
    return state.metrics("dist")


def evaluate(
    query,
    gallery,
    query_ids,
    gallery_ids,
    query_cams=None,
    gallery_cams=None,
    *,
    metric: str = "cosine",
    exclude: str = "none",
    cmc: str = "plain",
    topk: int = 20,
) -> RankMetrics:
    r"""CMC, mAP and mINP of a gallery ranked by its features; see :func:`evaluate_distance` for what is counted.

    The matrix of distances is made and counted in blocks of queries. float64 features are compared in float64, all
    others in float32: a rank is exact for the products as computed, whose bits do not depend on the number of threads.

    Args:
        query: [Q, D] features.
        gallery: [G, D] features, same dtype and device.
        query_ids: [Q] identities, any integer type.
        gallery_ids: [G] likewise.
        query_cams: [Q] cameras, needed by every ``exclude`` but ``"none"``.
        gallery_cams: [G] likewise.
        metric: ``"cosine"`` (a zero row has cosine 0 with every other), ``"euclidean"`` and ``"sqeuclidean"`` (the same
            order: ||g||^2 - 2 q.g of rows less a common origin), ``"dot"`` (larger is nearer).
        exclude: as in :func:`evaluate_distance`.
        cmc: likewise.
        topk: likewise.

    Returns:
        :class:`RankMetrics`.

    Raises:
        TypeError: features that are not floating point or of two dtypes, ids or cameras that are not integers.
        ValueError: shapes or devices that do not fit, unknown ``metric``, ``exclude`` or ``cmc``, missing cameras,
            ``topk`` below 1, features that are not finite or whose products could overflow, no valid query.

    Memory:
        A workspace of 64 MiB (at least 64 rows of the matrix), two numbers per gallery row, and a copy of a block of
        queries and of 2048 gallery rows where the metric or a half type needs one. Never Q x G or a second gallery:
        rows that are mapped from a file are read as they are needed.

    Source:
        Protocols: specs idkl 10.

    Example:
        >>> import torch
        >>> query, gallery = torch.eye(2), torch.tensor([[1.0, 0.2], [0.1, 1.0], [0.05, 1.0]])
        >>> round(evaluate(query, gallery, torch.tensor([0, 1]), torch.tensor([0, 1, 0])).mean_ap, 4)
        0.6667
    """
    _checks.one_of("metric", metric, METRICS)
    query, gallery = features(query, gallery)
    state = RankFold(len(query), len(gallery), query_ids, gallery_ids, query_cams, gallery_cams, exclude, cmc, topk)
    fold_products(query, gallery, metric, state)
    return state.metrics("query")


def fold_products(query: Tensor, gallery: Tensor, metric: str, state, names=("query", "gallery")) -> None:
    """Gives ``state.fold`` the keys of every block of queries; ``names`` are blamed for bad features."""
    sizes = finite_norms(names[0], query)
    products = GalleryProducts(gallery, metric, origin_of(query), 0, len(gallery), names[1])
    check_sizes(names, float(sizes.max()), products.most, gallery.dtype)
    step = block_rows(len(gallery), gallery.dtype)
    workspace = gallery.new_empty(min(step, len(query)), len(gallery), dtype=products.dtype)
    if products.packs:
        _C.prefer_huge_pages(workspace.view(-1))
    for start in steps(range(0, len(query), step), "ranking"):
        rows = query[start : start + step]
        state.fold(products.fill(rows, workspace[: len(rows)]), start, products.linear)
