"""Figures as inline SVG whose colours are CSS variables, so that they follow a page's light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that matplotlib is given, and the CSS variables that take their place in its SVG.
_FOREGROUND, _GRID = "#010101", "#020202"
_SERIES = ("#030303", "#040404")
_VARIABLES = {_FOREGROUND: "--fg", _GRID: "--grid", _SERIES[0]: "--first", _SERIES[1]: "--second"}


def loss_curve(steps: Sequence[int], loss: Sequence[float]) -> str:
    """Training loss by step: the raw values under their mean over a fortieth of the run."""
    figure, axes = _new("training step", "loss")
    window = max(len(steps) // 40, 1)
    axes.plot(steps, loss, color=_SERIES[1], linewidth=0.8, alpha=0.3)
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], smooth, color=_SERIES[1])
    axes.set_ylim(bottom=0)
    return _svg(figure, "loss")


def cmc_curves(curves: Mapping[str, Sequence[float]]) -> str:
    """Share of queries with a hit among the first k, in percent; at most two named curves in 0..1."""
    figure, axes = _new("rank k", "queries with a hit (%)")
    for color, (name, cmc) in zip(_SERIES[-len(curves) :], curves.items(), strict=True):
        ranks, percent = range(1, len(cmc) + 1), 100 * np.asarray(cmc)
        axes.plot(ranks, percent, color=color, marker="o", markersize=3, label=name)
    axes.set_ylim(0, 102)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(axes, "lower right")
    return _svg(figure, "cmc")


def distance_histogram(same: Sequence[float], different: Sequence[float], name: str) -> str:
    """Distances of query and gallery features of the same and of different people, as densities."""
    figure, axes = _new("cosine distance", "density")
    edges = np.linspace(0, max(np.max(same), np.max(different), 1e-6), 50)
    kinds = {"different people": different, "same person": same}
    for color, (label, values) in zip(_SERIES, kinds.items(), strict=True):
        axes.hist(values, edges, density=True, color=color, alpha=0.55, label=label)
    axes.set_yticks([])
    _legend(axes, "best")
    return _svg(figure, f"distances-{name}")


def _new(x_label: str, y_label: str) -> tuple:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=_FOREGROUND)
    axes.set_ylabel(y_label, color=_FOREGROUND)
    axes.tick_params(colors=_FOREGROUND, length=0)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return figure, axes


def _legend(axes: Axes, place: str) -> None:
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
