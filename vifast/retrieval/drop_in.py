"""Functions under the names, arguments and results that re-identification repositories have, counted instead of sorted.

One import replaces the slow function, and its callers stay as they are:

    from vifast.retrieval.drop_in import eval_sysu, eval_regdb, eval_llcm      # AGW, DEEN and what grew from them
    from vifast.retrieval.drop_in import evaluate_rank                         # torchreid
    from vifast.retrieval.drop_in import evaluate_rank_fastreid as evaluate_rank
    from vifast.retrieval.drop_in import re_ranking                            # k-reciprocal, of features

Matrices are [Q, G], smaller is nearer, ties go to the lower gallery row; labels are lists or arrays. Curves have
``min(max_rank, G)`` places and, where a query's list is shorter, stay at their last value. Queries without a positive
count nowhere; if there is no other, a ValueError says so.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vifast import _checks
from vifast.retrieval._arguments import as_tensor, codes_of, positive
from vifast.retrieval.metrics import evaluate_distance
from vifast.retrieval.ranking import RankMetrics
from vifast.retrieval.rerank import rerank


def eval_sysu(distmat, q_pids, g_pids, q_camids, g_camids, max_rank: int = 20) -> tuple[np.ndarray, float, float]:
    """AGW's evaluation of SYSU-MM01: a query of camera 3 does not search camera 2, CMC among identities.

    Args:
        distmat: [Q, G] distances, array or tensor.
        q_pids: [Q] identities.
        g_pids: [G] likewise.
        q_camids: [Q] cameras.
        g_camids: [G] likewise.
        max_rank: length of the curve, at most G.

    Returns:
        cmc: [min(max_rank, G)] float32.
        mAP: mean average precision.
        mINP: mean inverse negative penalty.

    Raises:
        TypeError, ValueError: as :func:`vifast.retrieval.evaluate_distance`.

    Memory:
        As :func:`vifast.retrieval.evaluate_distance`.

    Source:
        Specs idkl 10, golden ``idkl_eval_agw``.

    Example:
        >>> cmc, mAP, mINP = eval_sysu(np.array([[0.1, 0.2, 0.3]]), [1], [2, 1, 1], [3], [1, 2, 1])
        >>> cmc.tolist(), mAP, mINP
        ([0.0, 1.0, 1.0], 0.5, 0.5)
    """
    return _curve_and_means(_ranked(distmat, q_pids, g_pids, q_camids, g_camids, "sysu", "identity", max_rank))


def eval_regdb(distmat, q_pids, g_pids, max_rank: int = 20) -> tuple[np.ndarray, float, float]:
    """AGW's evaluation of RegDB: nothing is left out, plain CMC. Arguments and results as :func:`eval_sysu`.

    Example:
        >>> eval_regdb(np.array([[0.2, 0.1]]), [1], [1, 2])[0].tolist()
        [0.0, 1.0]
    """
    return _curve_and_means(_ranked(distmat, q_pids, g_pids, None, None, "none", "plain", max_rank))


def eval_llcm(distmat, q_pids, g_pids, q_camids, g_camids, max_rank: int = 20) -> tuple[np.ndarray, float, float]:
    """DEEN's evaluation of LLCM: images of the query's person by the query's camera are left out, CMC among identities.
    Arguments and results as :func:`eval_sysu`.

    Example:
        >>> eval_llcm(np.array([[0.1, 0.2, 0.3]]), [1], [1, 2, 1], [4], [4, 4, 5])[1]
        0.5
    """
    return _curve_and_means(
        _ranked(distmat, q_pids, g_pids, q_camids, g_camids, "same_id_camera", "identity", max_rank)
    )


def evaluate_rank(
    distmat,
    q_pids,
    g_pids,
    q_camids,
    g_camids,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
) -> tuple[np.ndarray, float]:
    """torchreid's evaluation: images of the query's person by the query's camera are left out, plain CMC (Market-1501).

    Args:
        distmat: [Q, G] distances, array or tensor.
        q_pids: [Q] identities.
        g_pids: [G] likewise.
        q_camids: [Q] cameras.
        g_camids: [G] likewise.
        max_rank: length of the curve, at most G.
        use_metric_cuhk03: the curve of CUHK03's old protocol, whose gallery is one random image per identity. It is the
            expectation over these galleries, to which the mean of ten random ones that others report tends; mean
            average precision is of the whole gallery.
        use_cython: taken and ignored.

    Returns:
        cmc: [min(max_rank, G)] float32.
        mAP: mean average precision.

    Raises:
        TypeError, ValueError: as :func:`vifast.retrieval.evaluate_distance`.

    Memory:
        As :func:`vifast.retrieval.evaluate_distance`; with CUHK03's metric also positives x identities of a query.

    Source:
        Zheng et al. 2015 (Market-1501), Li et al. 2014 (CUHK03).

    Example:
        >>> evaluate_rank(np.array([[0.1, 0.2, 0.3]]), [1], [1, 2, 1], [4], [4, 4, 5])
        (array([0., 1., 1.], dtype=float32), 0.5)
    """
    cmc, ap, _ = evaluate_rank_fastreid(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03)
    return cmc, float(np.mean(ap))


def evaluate_rank_fastreid(
    distmat,
    q_pids,
    g_pids,
    q_camids,
    g_camids,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """fast-reid's ``evaluate_rank``: as :func:`evaluate_rank`, with the scores of every valid query.

    Returns:
        cmc: [min(max_rank, G)] float32.
        all_AP: [valid queries] average precisions.
        all_INP: likewise inverse negative penalties.

    Example:
        >>> cmc, all_AP, all_INP = evaluate_rank_fastreid(np.array([[0.1, 0.2, 0.3]]), [1], [1, 2, 1], [4], [4, 4, 5])
        >>> all_AP, all_INP
        (array([0.5]), array([0.5]))
    """
    result = _ranked(distmat, q_pids, g_pids, q_camids, g_camids, "same_id_camera", "plain", max_rank)
    valid = ~result.ap.isnan()
    cmc = result.cmc
    if use_metric_cuhk03:
        labels = _codes(distmat, q_pids, g_pids, q_camids, g_camids)
        dist = as_tensor("distmat", distmat).cpu()
        curves = [_single_shot(dist[q], *labels, q, len(cmc)) for q in valid.nonzero().flatten().tolist()]
        cmc = torch.stack(curves).mean(0)
    return cmc.float().numpy(), result.ap[valid].numpy(), result.inp[valid].numpy()


def re_ranking(probFea, galFea, k1, k2, lambda_value, *, queries_only=False) -> np.ndarray:
    r"""k-reciprocal re-ranking under the name and arguments of the published evaluation code.

    :func:`vifast.retrieval.rerank` with ``metric="sqeuclidean"`` and ``precision="reference"``: the published
    numbers, half-precision rounding included, for code that compares with its old results. Its defaults are faster.

    Args:
        probFea: [Q, D] query features, a tensor or an array.
        galFea: [G, D] gallery features.
        k1: neighbours that must be mutual.
        k2: rows whose weights are averaged.
        lambda_value: weight of the original distance.
        queries_only: the masked mode.

    Returns:
        [Q, G] float32 array of distances.

    Raises:
        TypeError, ValueError: as :func:`vifast.retrieval.rerank`.

    Memory:
        As :func:`vifast.retrieval.rerank`.

    Source:
        specs idkl 10.

    Example:
        >>> import numpy as np
        >>> query, gallery = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32) + 0.1
        >>> re_ranking(query, gallery, 1, 1, 0.3).argmin(1).tolist()
        [0, 1]
    """
    dist = rerank(probFea, galFea, k1=k1, k2=k2, lambda_=lambda_value, queries_only=queries_only, precision="reference")
    return dist.cpu().numpy()


def _ranked(distmat, q_pids, g_pids, q_camids, g_camids, exclude, cmc, max_rank) -> RankMetrics:
    dist = as_tensor("distmat", distmat)
    _checks.rows("distmat", dist)
    topk = min(positive("max_rank", max_rank), max(1, dist.size(1)))
    labels = _codes(dist, q_pids, g_pids, q_camids, g_camids)
    return evaluate_distance(dist, *labels, exclude=exclude, cmc=cmc, topk=topk)


def _codes(dist, q_pids, g_pids, q_camids, g_camids) -> list[Tensor | None]:
    """Labels as tensors, checked under the names that callers know."""
    named = {"q_pids": q_pids, "g_pids": g_pids, "q_camids": q_camids, "g_camids": g_camids}
    codes = []
    for (name, labels), count in zip(named.items(), (*dist.shape, *dist.shape), strict=True):
        rows = np.asarray(labels) if isinstance(labels, (list, tuple)) else labels
        codes.append(None if rows is None else codes_of(name, rows, "distmat", count))
    return codes


def _curve_and_means(result: RankMetrics) -> tuple[np.ndarray, float, float]:
    return result.cmc.float().numpy(), result.mean_ap, result.mean_inp


def _single_shot(row: Tensor, q_pids, g_pids, q_camids, g_camids, q: int, topk: int) -> Tensor:
    """Expected curve [topk] of one query over galleries of one image per identity, each drawn uniformly from the images
    that are not left out.

    The drawn positive has the place 1 + the number of other identities whose image is ahead of it. Each is ahead with
    the share of its images that are, independently, so their number is a sum of Bernoulli variables.
    """
    kept = ~((g_pids == q_pids[q]) & (g_camids == q_camids[q]))
    row, pids = row[kept].double(), torch.unique(g_pids[kept], return_inverse=True)[1]
    own = (g_pids[kept] == q_pids[q]).nonzero().flatten()
    images = torch.bincount(pids)
    index = torch.arange(len(row))
    ahead = (row < row[own, None]) | ((row == row[own, None]) & (index < own[:, None]))
    share = torch.zeros(len(own), len(images), dtype=torch.float64).index_add_(1, pids, ahead.double()) / images
    share[:, pids[own[0]]] = 0
    share = share[:, share.any(0)]
    chance = torch.zeros(len(own), topk, dtype=torch.float64)  # of so many identities ahead
    chance[:, 0] = 1
    for one in share.T.unsqueeze(2):
        moved = chance[:, :-1] * one
        chance *= 1 - one
        chance[:, 1:] += moved
    return chance.cumsum(1).mean(0)
