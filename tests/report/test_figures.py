import re
from xml.etree import ElementTree

import numpy as np
import pytest

from vifast.report import figures

RNG = np.random.default_rng(0)
FIGURES = {
    "loss": lambda: figures.loss_curve(list(range(1, 101)), list(RNG.random(100))),
    "one step": lambda: figures.loss_curve([1], [3.0]),
    "cmc": lambda: figures.cmc_curves({"before": [0.1, 0.2], "after": [0.8, 1.0]}),
    "distances": lambda: figures.distance_histogram(RNG.random(50), RNG.random(80), "after"),
    "equal distances": lambda: figures.distance_histogram([0.0], [0.0, 0.0], "before"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_is_one_svg_that_follows_the_theme(name):
    svg = FIGURES[name]()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "var(--fg)" in svg
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]", svg)


def test_is_the_same_from_run_to_run_and_ids_differ_between_figures():
    first = figures.cmc_curves({"a": [0.1, 0.2]})
    assert first == figures.cmc_curves({"a": [0.1, 0.2]})
    other = figures.distance_histogram([0.1], [0.2, 0.3], "after")
    ids = [set(re.findall(r'<clipPath id="(.*?)"', svg)) for svg in (first, other)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_legend_names_the_series():
    svg = figures.cmc_curves({"untrained": [0.1], "trained": [0.9]})
    assert ">untrained<" in svg
    assert ">trained<" in svg
