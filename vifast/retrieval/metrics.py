"""CMC, mean average precision and mean inverse negative penalty of ranked galleries, without sorting them."""

import torch
from torch import Tensor

from vifast import _checks
from vifast.kernels import _C
from vifast.kernels._cpu import product
from vifast.retrieval._arguments import METRICS, as_tensor, check_finite, features
from vifast.retrieval.ranking import RankFold, RankMetrics

WORKSPACE = 64 * 2**20  # bytes of the matrix that exist at a time
ORIGIN_ROWS = 128  # of the queries, whose mean stands for the mean of all
LARGEST = {torch.float32: 1e37, torch.float64: 1e300}  # products beyond this may overflow on the way


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
    step = len(dist) if in_place else _block_rows(dist.size(1), dist.dtype)
    for start in range(0, len(dist), step):
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
        A workspace of 64 MiB (at least two rows of the matrix), for the Euclidean metrics a copy of the gallery and of
        a block of queries, for half types a float32 copy of both; never Q x G.

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
    query, gallery = (x if x.dtype == torch.float64 else x.float() for x in (query, gallery))
    origin, other, linear = _products_to_keys(query, gallery, metric, names)
    step = _block_rows(len(other), other.dtype)
    workspace = other.new_empty(min(step, len(query)), len(other))
    for start in range(0, len(query), step):
        rows = query[start : start + step]
        rows = rows if origin is None else rows - origin
        state.fold(product(rows, other, workspace[: len(rows)]), start, linear)


def _products_to_keys(query: Tensor, gallery: Tensor, metric: str, names: tuple[str, str]):
    """(origin, rows, (scale, bias)): ``scale * (q - origin) . row + bias`` rises with q's distance to a gallery row.

    A factor or a constant that all keys of a query share changes no ranking, so queries are not scaled, and only the
    Euclidean metrics copy the gallery.
    """
    norm_q, norm_g = _finite_norms(names[0], query), _finite_norms(names[1], gallery)
    if float(norm_q.max()) * float(norm_g.max()) > LARGEST[gallery.dtype]:
        raise ValueError(f"{', '.join(names)}: expected norms whose product stays below {LARGEST[gallery.dtype]:g}")
    zero, one = (gallery.new_full((len(gallery),), value) for value in (0.0, 1.0))
    if metric == "cosine":
        return None, gallery, (-torch.where(norm_g > 0, 1 / norm_g, 0.0).to(gallery.dtype), zero)
    if metric == "dot":
        return None, gallery, (-one, zero)
    # Any row near the others takes away the cancellation of a shared offset. Of queries alone, so that a gallery's keys
    # do not depend on what other rows are multiplied with it.
    origin = query[:: -(-len(query) // ORIGIN_ROWS)].mean(0)
    rows = gallery - origin
    return origin, rows, (-2 * one, _norms(rows).square().to(rows.dtype))


def _finite_norms(name: str, x: Tensor) -> Tensor:
    norm = _norms(x)
    if not bool(norm.isfinite().all()):
        check_finite(name, x)
    return norm


def _norms(x: Tensor) -> Tensor:
    """float64 norms, each summed in one order whatever the number of threads."""
    if x.dtype == torch.float64 or x.device.type != "cpu":
        return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    norm = torch.empty(len(x), dtype=torch.float64)
    _C.row_norms(x.contiguous(), norm, torch.get_num_threads())
    return norm


def _block_rows(num_gallery: int, dtype: torch.dtype) -> int:
    width = 8 if dtype == torch.float64 else 4
    return max(2, WORKSPACE // (num_gallery * width))
