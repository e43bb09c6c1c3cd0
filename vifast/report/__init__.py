"""Figures and the self-contained HTML page of a run."""

from vifast.report.page import Curve, Metrics, RankedQuery, Report, render, write

__all__ = ["Curve", "Metrics", "RankedQuery", "Report", "render", "write"]
