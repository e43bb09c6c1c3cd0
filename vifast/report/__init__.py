"""Figures and the self-contained HTML page of a run."""

from vifast.report.page import Curve, Metrics, RankedQuery, Report, render, write
from vifast.report.retrieval import Cell, RetrievalPage, Table, render_retrieval, write_retrieval

__all__ = [
    "Cell",
    "Curve",
    "Metrics",
    "RankedQuery",
    "Report",
    "RetrievalPage",
    "Table",
    "render",
    "render_retrieval",
    "write",
    "write_retrieval",
]
