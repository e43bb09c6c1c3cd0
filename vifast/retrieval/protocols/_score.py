"""From two sides and the rows of every trial to a result, with or without re-ranking."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vifast._progress import steps
from vifast.retrieval.metrics import evaluate_distance
from vifast.retrieval.protocols._sets import Side
from vifast.retrieval.protocols.result import ProtocolResult
from vifast.retrieval.ranking import RankMetrics
from vifast.retrieval.rerank import rerank as k_reciprocal
from vifast.retrieval.trials import rank_trials, rising_rows


def result_of(name: str, settings, query: Side, gallery: Side, trials, topk, rerank, options) -> ProtocolResult:
    """``trials`` are the rows of every trial's gallery, or None for the whole."""
    results = ranked(query, gallery, trials, settings, topk, rerank)
    if trials is None:
        names, sizes = ("whole gallery",), (len(gallery.feat),)
    else:
        names, sizes = tuple(f"trial {t}" for t in range(len(trials))), tuple(len(rows) for rows in trials)
    return labelled(name, settings | options, results, names, sizes, rerank)


def labelled(name, settings, results, names, sizes, rerank) -> ProtocolResult:
    if rerank is not None:
        name, settings = f"{name}, re-ranked", {**settings, "rerank": dict(rerank)}
    return ProtocolResult(name, settings, tuple(results), tuple(names), tuple(sizes))


def ranked(query: Side, gallery: Side, trials, settings, topk, rerank: Mapping | None) -> tuple[RankMetrics, ...]:
    """``rerank`` are the arguments of :func:`vifast.retrieval.rerank`; a trial's gallery is re-ranked by itself."""
    trials = [torch.arange(len(gallery.feat))] if trials is None else trials
    labels = (query.ids, gallery.ids, query.cams, gallery.cams)
    if rerank is None:
        names = (query.name, gallery.name)
        return rank_trials(query.feat, gallery.feat, *labels, trials, topk=topk, names=names, **settings)
    if not isinstance(rerank, Mapping):
        raise TypeError(f"rerank: expected a mapping of options or None, got {type(rerank).__name__}")
    if "topk" in rerank or "metric" in rerank:
        raise ValueError("rerank: expected no topk, which scores need whole, and no metric, which is the protocol's")
    metric = settings["metric"]
    if metric == "dot":
        raise ValueError('metric: expected a distance for rerank, got "dot"')
    sides = (query.feat, gallery.feat)
    if metric == "cosine":  # as published: squared Euclidean distances of unit rows
        sides, metric = [torch.nn.functional.normalize(feat) for feat in sides], "sqeuclidean"
    how = {"exclude": settings["exclude"], "cmc": settings["cmc"], "topk": topk}
    results = []
    for t in steps(range(len(trials)), "re-ranking galleries"):
        part = rising_rows(f"trials[{t}]", trials[t], len(gallery.feat))
        dist = k_reciprocal(sides[0], sides[1][part.to(sides[1].device)], metric=metric, **rerank)
        cams = None if gallery.cams is None else gallery.cams[part]
        results.append(evaluate_distance(dist, query.ids, gallery.ids[part], query.cams, cams, **how))
    return tuple(results)
