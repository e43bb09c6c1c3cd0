"""Ranking metrics of several galleries that are subsets of one, for little more than the price of the largest."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vifast import _checks
from vifast.retrieval._arguments import METRICS, as_tensor, codes_of, features
from vifast.retrieval.metrics import fold_products
from vifast.retrieval.ranking import RankFold, RankMetrics, counts_on_gpu, metrics_of

MOST_TRIALS = 16  # that one pass over a row counts


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
    lower row of ``gallery``. All trials share one product with the union of their galleries, and one look at each of
    its numbers: a column's place among the query's sorted positives is the same in every trial, so it is added there,
    once, to a counter per trial, and sums over places are the trials' ranks.

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

    Memory:
        As :func:`vifast.retrieval.evaluate` for the union, a copy of its rows where it is not the whole gallery, and
        24 bytes a query and trial.

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
    union = torch.unique(torch.cat(rows))
    if len(union) < len(gallery):
        gallery, ids, cams = gallery[union.to(gallery.device)], ids[union], None if cams is None else cams[union]
        rows = [torch.searchsorted(union, part) for part in rows]
    whole = RankFold(len(query), len(gallery), query_ids, ids, query_cams, cams, exclude, cmc, topk)
    if len(rows) == 1:
        fold_products(query, gallery, metric, whole, names)
        return (whole.metrics(names[0]),)
    state = TrialFold(whole, rows)
    fold_products(query, gallery, metric, state, names)
    return state.metrics(names[0])


class TrialFold:
    """State of one evaluation of several galleries that are columns of the same matrix; folds like ``RankFold``."""

    def __init__(self, whole: RankFold, trials: list[Tensor]):
        self.whole, self.trials = whole, trials
        self._parts = [None] * len(trials)
        self._groups = [
            _group(whole, trials[start : start + MOST_TRIALS]) for start in range(0, len(trials), MOST_TRIALS)
        ]

    def fold(self, keys: Tensor, start: int, linear: tuple[Tensor, Tensor] | None = None) -> None:
        """Rows ``start ..`` of the matrix, as ``RankFold.fold`` takes them."""
        if counts_on_gpu(keys):
            self._fold_each(keys, start, linear)
            return
        rows = slice(start, start + len(keys))
        keys = keys.cpu().contiguous()
        linear = (None, None) if linear is None else [x.cpu() for x in linear]
        for group in self._groups:
            self.whole.count_ranks(keys, rows, *linear, *group)

    def _fold_each(self, keys: Tensor, start: int, linear) -> None:
        """Every trial's columns by themselves: its own list of keys, its own count."""
        if self._parts[0] is None:
            self._parts = [self.whole.part(columns) for columns in self.trials]
        for part, columns in zip(self._parts, self.trials, strict=True):
            at = columns.to(keys.device)
            part.fold(keys[:, at], start, None if linear is None else tuple(x[at] for x in linear))

    def metrics(self, name: str) -> tuple[RankMetrics, ...]:
        """Of every trial; see ``RankFold.metrics``."""
        if self._parts[0] is not None:
            return tuple(part.metrics(name) for part in self._parts)
        return tuple(
            metrics_of(*(x[:, t].contiguous() for x in results), self.whole.topk, name)
            for _, *results in self._groups
            for t in range(results[0].size(1))
        )


def _group(whole: RankFold, trials: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bits of the trials by column, and their average precisions, penalties and first hits, one column a trial."""
    member = torch.zeros(len(whole.gallery_identity), dtype=torch.int32)
    for t, columns in enumerate(trials):
        member[columns] += 1 << t
    size = (len(whole.query_identity), len(trials))
    ap, inp = (torch.empty(size, dtype=torch.float64) for _ in range(2))
    return member, ap, inp, torch.empty(size, dtype=torch.int64)


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
