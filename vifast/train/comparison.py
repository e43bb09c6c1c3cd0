"""Runs beside each other: by what their configurations differ in, with seeds as repetitions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from vifast.report import SCORES, Cell, Table
from vifast.train.config import flatten
from vifast.train.record import Run


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in their seed alone together, in order, by the values that set them apart from the others.

    A key that only some of the runs have, such as an option of one system, is compared among those.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    settings = [_settings(group[0]) for group in groups.values()]
    keys = dict.fromkeys(key for values in settings for key in values)
    found = {key: [values[key] for values in settings if key in values] for key in keys}
    differing = {key: values for key, values in found.items() if any(value != values[0] for value in values)}
    named: dict[str, list[Run]] = {}
    for own, group in zip(settings, groups.values(), strict=True):
        words = [f"{key}={_word(own[key], values)}" for key, values in differing.items() if key in own]
        name = ", ".join(words) or group[0].folder.name
        named[f"{name} ({group[0].folder.name})" if name in named else name] = group
    return named


def score_table(groups: dict[str, list[Run]]) -> Table:
    """Means over the finished runs of each group, with their standard deviation, in percent; the best is marked."""
    finished = {name: [run.results for run in group if run.results is not None] for name, group in groups.items()}
    columns = [_column([[run[key] for run in runs] for runs in finished.values()]) for key in SCORES]
    counts = [
        str(len(runs)) if len(runs) == len(group) else f"{len(runs)} of {len(group)} finished"
        for runs, group in zip(finished.values(), groups.values(), strict=True)
    ]
    repeated = any(len(runs) > 1 for runs in finished.values())
    return Table(
        title="Scores",
        text="Means over runs that differ in their seed alone, ± their standard deviation." if repeated else "",
        heads=["", *(f"{name} (%)" for name, _ in SCORES.values()), "runs"],
        rows=list(zip(groups, *columns, counts, strict=True)),
    )


def _column(groups: list[list[float]]) -> list[Cell]:
    means = [100 * mean(values) if values else None for values in groups]
    best = max((value for value in means if value is not None), default=None)
    cells = []
    for value, values in zip(means, groups, strict=True):
        words = "–" if value is None else f"{value:.1f}"
        if len(values) > 1:
            words += f" ± {100 * stdev(values):.1f}"
        cells.append(Cell(words, "hit" if means.count(None) < len(means) > 1 and value == best else ""))
    return cells


def _settings(run: Run) -> dict[str, Any]:
    return {key: value for key, value in flatten(run.config).items() if key != "seed"}


def _word(value: Any, among: Sequence[Any]) -> str:
    """A value in words; a list of names by those that it leaves out of the longest."""
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        longest = max(among, key=lambda other: len(other or ()))
        missing = [name for name in longest if name not in value]
        if len(missing) + len(value) == len(longest):
            return f"all but {', '.join(missing)}" if missing else "all"
    return value if isinstance(value, str) else json.dumps(value)
