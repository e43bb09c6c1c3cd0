"""Exact retrieval without the query x gallery matrix: search, and the metrics of ranked galleries."""

from vifast.retrieval import protocols
from vifast.retrieval.gallery import Gallery
from vifast.retrieval.metrics import evaluate, evaluate_distance
from vifast.retrieval.ranking import RankMetrics
from vifast.retrieval.rerank import rerank, rerank_distance
from vifast.retrieval.search import search
from vifast.retrieval.sharded import ShardedGallery
from vifast.retrieval.trials import evaluate_trials

__all__ = [
    "Gallery",
    "RankMetrics",
    "ShardedGallery",
    "evaluate",
    "evaluate_distance",
    "evaluate_trials",
    "protocols",
    "rerank",
    "rerank_distance",
    "search",
]
