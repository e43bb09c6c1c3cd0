"""What the retrieval commands print and write: tables, arrays, JSON and pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import vifast
from vifast._files import replacing, write_text
from vifast.report import SCORES, Cell, Facts, Figures, Page, Table, Tile, Tiles, figures, write
from vifast.retrieval.protocols import ProtocolResult

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from vifast.retrieval import RankMetrics
    from vifast.retrieval.feature_files import FeatureFile

SHOWN = 50  # queries of a page


def check_suffix(name: str, path: Path | None, suffix: str) -> None:
    if path is not None and path.suffix != suffix:
        raise ValueError(f"{name}: expected a {suffix} file, got {path}")


def single(name: str, metrics: RankMetrics, size: int, settings: dict) -> ProtocolResult:
    """The metrics of one gallery in the form of a protocol's."""
    return ProtocolResult(name, settings, (metrics,), ("whole gallery",), (size,))


def print_result(console: Console, result: ProtocolResult) -> None:
    from rich.markup import escape
    from rich.table import Table as RichTable

    heads, rows = result.rows()
    console.print(f"[bold]{escape(result.protocol)}[/bold]", highlight=False)
    table = RichTable(box=None, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)


def write_json(path: Path, found: object) -> None:
    write_text(path, json.dumps(found, indent=None if _long(found) else 2) + "\n")


def _long(found: object) -> bool:
    """A search's lists of numbers would be a line a number."""
    return isinstance(found, dict) and "index" in found


def save_array(path: Path, array: Tensor) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array.cpu().numpy())


def save_arrays(path: Path, **arrays: Tensor) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: array.cpu().numpy() for name, array in arrays.items()})


def write_evaluation(
    path: Path, results: Sequence[ProtocolResult], facts: dict, title: str = "Evaluation", between: str = " / "
) -> None:
    """A page of one result, or of two that are compared."""
    several = len(results) > 1
    tiles = [
        Tile(name, between.join(f"{100 * result.scalars()[key]:.1f}" for result in results) + " %", meaning)
        for key, (name, meaning) in SCORES.items()
    ]
    tables = [_table(result.protocol, *result.rows()) for result in results]
    if several and all(len(result.trials) == 1 for result in results):
        rows = [[result.protocol, *table.rows[0][1:]] for result, table in zip(results, tables, strict=True)]
        tables = [_table("Scores", tables[0].heads, rows)]
    settings = {name: str(value) for name, value in results[-1].settings.items()} if results else {}
    sections = [*tables, _how(facts | settings)]
    if results:
        names = [result.protocol for result in results] if several else ["mean"]
        lines = [figures.cmc_line(r.cmc, k, name) for k, (r, name) in enumerate(zip(results, names, strict=True))]
        cmc = [("", figures.cmc_curves(*lines))]
        sections = [Tiles(tiles=tiles), Figures(title="Cumulative matches", figures=cmc), *sections]
    summary = " and ".join(result.protocol for result in results) if several else ""
    write(Page(title if several or not results else results[0].protocol, summary, sections), path)


def write_neighbours(
    path: Path, one: FeatureFile, other: FeatureFile, dist: Tensor, index: Tensor, facts: dict
) -> None:
    """A page with the nearest rows of the first queries, coloured where identities are known."""
    ids = [side.labels.get("ids") for side in (one, other)]
    known = ids[0] is not None and ids[1] is not None
    rows = []
    for q in range(min(SHOWN, len(dist))):
        cells = [f"{q}" + (f" (person {int(ids[0][q])})" if known else "")]
        for value, row in zip(dist[q].tolist(), index[q].tolist(), strict=True):
            mark = "" if not known or row < 0 else "hit" if int(ids[1][row]) == int(ids[0][q]) else "miss"
            cells.append(Cell("-" if row < 0 else f"{row} ({value:.3f})", mark))
        rows.append(cells)
    heads = ["query", *(str(k + 1) for k in range(dist.size(1)))]
    summary = "Each row begins with a query; its nearest gallery rows follow, their distances in brackets."
    if known:
        summary += " Green is the same person, red somebody else."
    table = _table(f"The first {len(rows)} of {len(dist)} queries", heads, rows)
    write(Page("Nearest neighbours", summary, [table, _how(facts)]), path)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(title=title, heads=heads, rows=rows)


def _how(facts: dict) -> Facts:
    return Facts(title="How", facts=facts | {"vifast": vifast.__version__})
