"""Figures and the self-contained HTML page that they come in, a list of sections."""

from vifast.report.page import Page, render, write
from vifast.report.scores import SCORES, percent, rankings, score_tiles
from vifast.report.sections import Cell, Facts, Figures, Pictures, RankedQuery, Rankings, Section, Table, Tile, Tiles

__all__ = [
    "SCORES",
    "Cell",
    "Facts",
    "Figures",
    "Page",
    "Pictures",
    "RankedQuery",
    "Rankings",
    "Section",
    "Table",
    "Tile",
    "Tiles",
    "percent",
    "rankings",
    "render",
    "score_tiles",
    "write",
]
