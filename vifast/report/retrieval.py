"""The HTML page of an evaluation, a search or a re-ranking, from plain numbers and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vifast._files import write_text
from vifast.report import figures
from vifast.report.page import environment


class Cell(str):
    """Words of a table, with ``mark`` ``"hit"`` or ``"miss"`` for their colour."""

    __slots__ = ("mark",)

    def __new__(cls, text: str, mark: str = "") -> Cell:
        cell = super().__new__(cls, text)
        cell.mark = mark
        return cell


@dataclass(frozen=True)
class Table:
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class RetrievalPage:
    """What the page shows: ``tiles`` are (name, value, meaning), ``curves`` at most two CMC curves in 0..1 by name."""

    title: str
    summary: str
    tiles: Sequence[tuple[str, str, str]] = ()
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def render_retrieval(page: RetrievalPage) -> str:
    """The page as a string of HTML."""
    figure = figures.cmc_curves(page.curves) if page.curves else ""
    return environment().get_template("retrieval.html.j2").render(page=page, figure=figure)


def write_retrieval(page: RetrievalPage, path: Path) -> None:
    """Renders the page to ``path``, which is either complete or untouched."""
    write_text(path, render_retrieval(page))
