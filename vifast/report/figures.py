"""Figures as inline SVG whose colours are CSS variables, so that they follow a page's light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_SERIES = 8  # colours of a page; beyond them lines are dashed, then dotted
# Colours that matplotlib is given, and the CSS variables that take their place in its SVG.
_FOREGROUND, _GRID, _MUTED = "#010101", "#020202", "#030303"
_SERIES = [f"#0404{k:02x}" for k in range(NUM_SERIES)]
_VARIABLES = {_FOREGROUND: "--fg", _GRID: "--grid", _MUTED: "--muted-line"}
_VARIABLES |= {color: f"--s{k + 1}" for k, color in enumerate(_SERIES)}
_WIDE, _SMALL = (5.2, 3.0), (3.0, 2.1)
_MOST = 500  # points of a line
_SMOOTH = 40  # a line is the mean over such a part of it


@dataclass(frozen=True)
class Line:
    """Values over numbers, in the colour of a ``series``; without one it is grey."""

    x: Sequence[float]
    y: Sequence[float]
    series: int | None = 0
    name: str = ""


def training_curves(name: str, lines: Sequence[Line], x_label: str, y_label: str, *, small: bool = False) -> str:
    """Noisy values: their running mean, and where there is one line alone the values under it."""
    figure, axes = _new(x_label, y_label, small)
    lowest = 0.0
    for line in lines:
        x, y = _thinned(line.x, line.y)
        if len(lines) == 1:
            axes.plot(x, y, **{**_style(line), "linewidth": 0.8, "alpha": 0.3, "label": None})
        axes.plot(*_smoothed(x, y), **_style(line))
        lowest = min(lowest, *y[np.isfinite(y)], 0.0)
    axes.set_ylim(bottom=lowest)
    return _svg(figure, name)


def curves(name: str, lines: Sequence[Line], x_label: str, y_label: str, *, small: bool = False) -> str:
    """Values as they are, a mark for each where they are few; named lines are in a legend."""
    figure, axes = _new(x_label, y_label, small)
    for line in lines:
        marks = {"marker": "o", "markersize": 3} if len(line.x) <= _SMOOTH else {}
        axes.plot(*_thinned(line.x, line.y), **_style(line), **marks)
    axes.set_ylim(bottom=0)
    _integer_ticks(axes)
    _legend(axes, "best")
    return _svg(figure, name)


def cmc_curves(*lines: Line, small: bool = False) -> str:
    """Share of queries with a hit among the first k; see `cmc_line`."""
    figure, axes = _new("rank k", "" if small else "queries with a hit (%)", small)
    for line in lines:
        axes.plot(line.x, line.y, marker="o", markersize=3, **_style(line))
    axes.set_ylim(0, 102)
    _integer_ticks(axes)
    _legend(axes, "lower right")
    return _svg(figure, "cmc")


def cmc_line(cmc: Sequence[float], series: int | None = 0, name: str = "") -> Line:
    """A CMC curve in 0..1 from rank 1 on, in percent over its ranks."""
    return Line(range(1, len(cmc) + 1), 100 * np.asarray(cmc), series, name)


def shares(name: str, x: Sequence[float], parts: Mapping[str, Sequence[float]], x_label: str) -> str:
    """Running means of the shares in 0..1 of named parts over ``x``, stacked, in percent."""
    figure, axes = _new(x_label, "share of time (%)")
    smooth = [_smoothed(*_thinned(x, values)) for values in parts.values()]
    axes.stackplot(
        smooth[0][0],
        [100 * values for _, values in smooth],
        labels=list(parts),
        colors=_SERIES[: len(parts)],
        alpha=0.75,
    )
    axes.set_ylim(0, 100)
    axes.margins(x=0)
    columns = len(parts) if len(parts) <= 5 else -(-len(parts) // 2)  # as many as are as wide as the figure
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, labelcolor=_FOREGROUND, handlelength=1)
    return _svg(figure, name)


def heat_map(name: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """Shares in 0..1 in percent, the larger the deeper the colour; None leaves a place empty."""
    from matplotlib.patches import Rectangle

    figure, axes = _new("", "")
    axes.grid(visible=False)
    known = [value for row in values for value in row if value is not None]
    most = max(known, default=0.0) or 1.0
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value is not None:
                box = {"facecolor": _SERIES[0], "alpha": 0.05 + 0.6 * value / most, "linewidth": 0}
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, **box))
                axes.text(x, y, f"{100 * value:.1f}", ha="center", va="center", color=_FOREGROUND)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    return _svg(figure, name)


def distance_histogram(same: Sequence[float], different: Sequence[float], name: str) -> str:
    """Distances of query and gallery features of the same and of different people, as densities."""
    figure, axes = _new("cosine distance", "density")
    edges = np.linspace(0, max(np.max(same), np.max(different), 1e-6), 50)
    for color, label, values in ((_MUTED, "different people", different), (_SERIES[0], "same person", same)):
        axes.hist(values, edges, density=True, color=color, alpha=0.55, label=label)
    axes.set_yticks([])
    _legend(axes, "best")
    return _svg(figure, f"distances-{name}")


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MOST` points: means of as many values in a row."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    starts = np.arange(0, len(x), -(-len(x) // _MOST) or 1)
    counts = np.diff([*starts, len(x)])
    return tuple(np.add.reduceat(values, starts) / counts if len(x) else values for values in (x, y))


def _smoothed(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The running mean over a part of the line, from where there are enough values on."""
    window = max(len(x) // _SMOOTH, 1)
    return x[window - 1 :], np.convolve(y, np.ones(window) / window, mode="valid")


def _style(line: Line) -> dict:
    if line.series is None:
        return {"color": _MUTED, "label": line.name or None}
    dashes, color = divmod(line.series, NUM_SERIES)
    return {"color": _SERIES[color], "linestyle": ("-", "--", ":")[min(dashes, 2)], "label": line.name or None}


def _new(x_label: str, y_label: str, small: bool = False) -> tuple:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SMALL if small else _WIDE, layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=_FOREGROUND)
    axes.set_ylabel(y_label, color=_FOREGROUND)
    axes.tick_params(colors=_FOREGROUND, length=0)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return figure, axes


def _integer_ticks(axes: Axes) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)


def _legend(axes: Axes, place: str) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc=place, frameon=False, labelcolor=_FOREGROUND)


def _svg(figure, name: str) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    # The salt keeps the ids of several figures on one page apart, and the output the same from run to run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg
