"""Ranking metrics of several galleries that are subsets of one."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vifast import _checks
from vifast.retrieval._arguments import METRICS, as_tensor, codes_of, features
from vifast.retrieval.metrics import fold_products
from vifast.retrieval.ranking import RankFold, RankMetrics


def evaluate_trials(
    query,
    gallery,
    query_ids,
    gallery_ids,
    query_cams=None,
    gallery_cams=None,
    *,
    trials: Sequence,
    metric: str = "cosine",
    exclude: str = "none",
    cmc: str = "plain",
    topk: int = 20,
) -> tuple[RankMetrics, ...]:
    r"""CMC, mAP and mINP of every trial, whose gallery is some of the gallery's rows.

    A trial is evaluated as :func:`vifast.retrieval.evaluate` does on ``gallery[rows]``, rows rising: ties go to the
    lower row of ``gallery``.

    Args:
        query: [Q, D] features.
        gallery: [G, D] features that all trials draw from, same dtype and device.
        query_ids: [Q] identities, any integer type.
        gallery_ids: [G] likewise.
        query_cams: [Q] cameras, needed by every ``exclude`` but ``"none"``.
        gallery_cams: [G] likewise.
        trials: for every trial the rows of ``gallery`` that form its gallery: distinct integers, in any order.
        metric: as in :func:`vifast.retrieval.evaluate`.
        exclude: likewise.
        cmc: likewise.
        topk: likewise.

    Returns:
        One :class:`RankMetrics` a trial.

    Raises:
        TypeError: as :func:`vifast.retrieval.evaluate`; rows that are not integers.
        ValueError: likewise; no trial, a trial without rows, a row that is twice in one or not in the gallery.

    Source:
        Protocols: specs idkl 10.

    Example:
        >>> import torch
        >>> query, gallery = torch.eye(2), torch.tensor([[1.0, 0.2], [0.1, 1.0], [0.05, 1.0]])
        >>> ids = torch.tensor([0, 1]), torch.tensor([0, 1, 0])
        >>> [result.mean_ap for result in evaluate_trials(query, gallery, *ids, trials=[[0, 1], [1, 2]])]
        [1.0, 0.5]
    """
    labels = (query_ids, gallery_ids, query_cams, gallery_cams)
    return rank_trials(query, gallery, *labels, trials, metric=metric, exclude=exclude, cmc=cmc, topk=topk)


def rank_trials(
    query,
    gallery,
    query_ids,
    gallery_ids,
    query_cams,
    gallery_cams,
    trials,
    *,
    metric,
    exclude,
    cmc,
    topk,
    names=("query", "gallery"),
) -> tuple[RankMetrics, ...]:
    """:func:`evaluate_trials` for features that the caller knows by other ``names``."""
    _checks.one_of("metric", metric, METRICS)
    query, gallery = features(query, gallery, names)
    rows = [rising_rows(f"trials[{t}]", trial, len(gallery)) for t, trial in enumerate(trials)]
    if not rows:
        raise ValueError("trials: expected at least one, got none")
    ids = codes_of("gallery_ids", gallery_ids, names[1], len(gallery))
    cams = None if gallery_cams is None else codes_of("gallery_cams", gallery_cams, names[1], len(gallery))
    results = []
    for part in rows:
        part_cams = None if cams is None else cams[part]
        state = RankFold(len(query), len(part), query_ids, ids[part], query_cams, part_cams, exclude, cmc, topk)
        fold_products(query, gallery[part.to(gallery.device)], metric, state, names)
        results.append(state.metrics(names[0]))
    return tuple(results)


def rising_rows(name: str, rows, num_gallery: int) -> Tensor:
    """A trial's rows as rising int64."""
    rows = np.asarray(rows) if isinstance(rows, (list, tuple)) else rows
    rows = as_tensor(name, rows).cpu()
    if rows.numel() == 0 or rows.dim() != 1:
        raise ValueError(f"{name}: expected shape [n] with at least one row, got {list(rows.shape)}")
    if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {rows.dtype}")
    rows = rows.to(torch.int64).sort()[0]
    if int(rows[0]) < 0 or int(rows[-1]) >= num_gallery:
        bad = int(rows[0]) if int(rows[0]) < 0 else int(rows[-1])
        raise ValueError(f"{name}: expected rows 0..{num_gallery - 1}, got {bad}")
    twice = rows[1:][rows[1:] == rows[:-1]]
    if len(twice):
        raise ValueError(f"{name}: expected distinct rows, got {int(twice[0])} twice")
    return rows
