import re
from xml.etree import ElementTree

import numpy as np
import pytest

from vifast.report import figures

RNG = np.random.default_rng(0)
LONG = figures.Line(range(1, 3001), RNG.random(3000) - 0.5, 1)
FIGURES = {
    "loss": lambda: figures.training_curves("loss", [figures.Line(range(1, 101), RNG.random(100))], "step", "loss"),
    "one step": lambda: figures.training_curves("loss", [figures.Line([1], [3.0])], "step", "loss"),
    "not finite": lambda: figures.training_curves("x", [figures.Line([1, 2], [float("nan")] * 2)], "step", "loss"),
    "overlaid": lambda: figures.training_curves("parts", [LONG, figures.Line([1, 2], [3, 4], 9)], "", "", small=True),
    "evaluations": lambda: figures.curves("scores", [figures.Line([10, 20], [1, 2], None, "mAP")], "epoch", "%"),
    "shares": lambda: figures.shares("time", range(9), {"data": [0.2] * 9, "forward": [0.8] * 9}, "step"),
    "cmc": lambda: figures.cmc_curves(figures.cmc_line([0.1, 0.2], None), figures.cmc_line([0.8, 1.0])),
    "distances": lambda: figures.distance_histogram(RNG.random(50), RNG.random(80), "after"),
    "heat map": lambda: figures.heat_map("m", ["a", "b"], ["a", "b"], [[0.5, None], [0.25, 1.0]]),
    "equal distances": lambda: figures.distance_histogram([0.0], [0.0, 0.0], "before"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_is_one_svg_that_follows_the_theme(name):
    svg = FIGURES[name]()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "var(--fg)" in svg
    assert not re.search(r"#0[1-4]0[1-4]0[0-7]", svg)


def test_is_the_same_from_run_to_run_and_ids_differ_between_figures():
    first = figures.cmc_curves(figures.cmc_line([0.1, 0.2]))
    assert first == figures.cmc_curves(figures.cmc_line([0.1, 0.2]))
    other = figures.distance_histogram([0.1], [0.2, 0.3], "after")
    ids = [set(re.findall(r'<clipPath id="(.*?)"', svg)) for svg in (first, other)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_legend_names_the_series():
    svg = figures.cmc_curves(figures.cmc_line([0.1], 0, "untrained"), figures.cmc_line([0.9], 1, "trained"))
    assert ">untrained<" in svg
    assert ">trained<" in svg


def test_a_series_has_a_colour_and_those_beyond_the_colours_are_dashed():
    def strokes(series):
        return re.findall(r"stroke: var\(--s(\d)\)", figures.cmc_curves(figures.cmc_line([0.1, 0.2], series)))

    assert set(strokes(0)) == {"1"}
    assert set(strokes(7)) == {"8"}
    assert set(strokes(9)) == {"2"}
    assert strokes(None) == []
    dashed = [
        figures.curves("x", [figures.Line([1, 2], [1, 2], k)], "", "").count("stroke-dasharray: ") for k in (0, 9)
    ]
    assert dashed[1] > dashed[0]


def test_long_runs_make_small_figures():
    short = figures.training_curves("loss", [figures.Line(range(500), RNG.random(500))], "step", "loss")
    long = figures.training_curves("loss", [figures.Line(range(100_000), RNG.random(100_000))], "step", "loss")
    assert len(long) < 1.5 * len(short)


def test_a_heat_map_has_a_number_in_every_place_that_is_known():
    svg = figures.heat_map("m", ["first", "second"], ["one", "two"], [[0.5, None], [0.25, 1.0]])
    assert re.findall(r">([\d.]+)<", svg) == ["50.0", "25.0", "100.0"]
    assert all(f">{word}<" in svg for word in ("first", "second", "one", "two"))
    assert [float(alpha) for alpha in re.findall(r"opacity: ([\d.]+)", svg)] == pytest.approx([0.35, 0.2, 0.65])
