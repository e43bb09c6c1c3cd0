"""Exact retrieval without the query x gallery matrix: search, and the metrics of ranked galleries."""

from vifast.retrieval import protocols
from vifast.retrieval.faiss_index import from_faiss, search_faiss, to_faiss
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
    "from_faiss",
    "protocols",
    "rerank",
    "rerank_distance",
    "search",
    "search_faiss",
    "to_faiss",
]
