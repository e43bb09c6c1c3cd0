"""What a page is made of: records of plain values, each with a template ``templates/<name of the class>.html.j2``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and a paragraph, either of which may be absent; the template of the class shows what else it holds."""

    title: str = ""
    text: str = ""


@dataclass(frozen=True)
class Tile:
    """One number in large type; ``before`` is what it was, ``meaning`` explains it."""

    name: str
    value: str
    meaning: str
    before: str = ""


@dataclass(frozen=True, kw_only=True)
class Tiles(Section):
    tiles: Sequence[Tile]


@dataclass(frozen=True, kw_only=True)
class Figures(Section):
    """Named SVG (see `vifast.report.figures`) side by side, ``small`` ones more to a row; the series by ``legend``."""

    figures: Sequence[tuple[str, str]]
    legend: Sequence[str] = ()
    small: bool = False


class Cell(str):
    """Words of a table, with ``mark`` ``"hit"`` or ``"miss"`` for their colour."""

    __slots__ = ("mark",)

    def __new__(cls, text: str, mark: str = "") -> Cell:
        cell = super().__new__(cls, text)
        cell.mark = mark
        return cell


@dataclass(frozen=True, kw_only=True)
class Table(Section):
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class RankedQuery:
    """A query image and its nearest gallery images, nearest first, as uint8 ``[H, W, 3]``."""

    image: np.ndarray
    gallery: Sequence[np.ndarray]
    hits: Sequence[bool]
    label: str


@dataclass(frozen=True, kw_only=True)
class Rankings(Section):
    queries: Sequence[RankedQuery]


@dataclass(frozen=True, kw_only=True)
class Pictures(Section):
    """Rows of uint8 ``[H, W, 3]`` images with words below each; the first of a row is set apart."""

    rows: Sequence[Sequence[tuple[np.ndarray, str]]]


@dataclass(frozen=True, kw_only=True)
class Facts(Section):
    """Names and values; ``details`` are long texts that open on demand."""

    facts: Mapping[str, str]
    details: Mapping[str, str] = field(default_factory=dict)
