"""Sections of a run's page that only some systems have: what was observed of them, and their teacher."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from vifast.report import Figures, Section, Table, figures, percent
from vifast.report.figures import Line
from vifast.report.scores import SCORES
from vifast.train.record import Run, finished, read_run
from vifast.train.teacher import FOLDER

_SHOWN = {1: "tenth", 5: "median", 9: "nine tenths"}  # of the deciles of a vector


def observed(run: Run) -> list[Section]:
    """A figure of all numbers that are called alike but for the last word, and one of every vector."""
    names = [name for name in (run.details[0] if run.details else {}) if name not in ("step", "epoch", "kind")]
    vectors = [name for name in names if isinstance(run.details[0][name], list)]
    numbers = sorted((name for name in names if name not in vectors), key=_stem)
    shown = []
    for stem, group in groupby(numbers, _stem):
        lines = [_line(run, name, k, name.rpartition("_")[2]) for k, name in enumerate(group)]
        shown.append((stem, figures.curves(stem, lines, "training step", "")))
    for name in vectors:
        lines = [_line(run, name, k, what, decile) for k, (decile, what) in enumerate(_SHOWN.items())]
        shown.append((name, figures.curves(name, lines, "training step", "")))
    return [Figures(title="Observed", figures=shown)] if shown else []


def taught(run: Run) -> list[Section]:
    """The scores of the teacher beside the run's own, if both are finished and the teacher's run is where it was."""
    folder = Path(run.config.get("teacher") or run.folder / FOLDER)
    if run.results is None or not finished(folder):
        return []
    pair = {"teacher": read_run(folder), "student": run}
    rows = [
        [name, one.config["system"].upper(), *(percent(one.results[key]) for key in SCORES)]
        for name, one in pair.items()
    ]
    heads = ["", "system", *(name for name, _ in SCORES.values())]
    lines = [figures.cmc_line(one.results["cmc"], k, name) for k, (name, one) in enumerate(pair.items())]
    cmc = [("Cumulative matches (%)", figures.cmc_curves(*lines))]
    text = "Both after their last epoch."
    return [Table(title="Teacher and student", text=text, heads=heads, rows=rows), Figures(figures=cmc)]


def _stem(name: str) -> str:
    return name.rpartition("_")[0]


def _line(run: Run, name: str, series: int, shown: str, decile: int | None = None) -> Line:
    having: Sequence[dict] = [record for record in run.details if name in record]
    values = [record[name] if decile is None else record[name][decile] for record in having]
    return Line([record["step"] for record in having], values, series, shown)
