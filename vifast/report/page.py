"""One self-contained HTML page: no script, no link, every figure and image inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vifast._files import write_text
from vifast.report import figures


@dataclass(frozen=True)
class Metrics:
    """Retrieval metrics in 0..1, the CMC curve from rank 1, and distances of the two kinds of pairs."""

    rank1: float
    mean_ap: float
    mean_inp: float
    cmc: Sequence[float]
    same: Sequence[float]
    different: Sequence[float]


@dataclass(frozen=True)
class Curve:
    """Training loss by optimiser step."""

    steps: Sequence[int]
    loss: Sequence[float]


@dataclass(frozen=True)
class RankedQuery:
    """A query image and its nearest gallery images, nearest first, as uint8 ``[H, W, 3]``."""

    image: np.ndarray
    gallery: Sequence[np.ndarray]
    hits: Sequence[bool]
    label: str


@dataclass(frozen=True)
class Report:
    """Everything the page shows; ``facts`` are name and value, ``config`` the resolved one as YAML."""

    title: str
    summary: str
    before: Metrics
    after: Metrics
    curve: Curve
    queries: Sequence[RankedQuery]
    facts: Mapping[str, str]
    config: str


def environment():
    """The templates of this package, with every value escaped and every name required."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("vifast.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def render(report: Report) -> str:
    """The page as a string of HTML."""
    templates = environment()
    templates.filters.update(uri=_data_uri, zip=zip)
    before, after = report.before, report.after
    return templates.get_template("report.html.j2").render(
        report=report,
        tiles=[
            ("Rank-1", before.rank1, after.rank1, "queries whose nearest image shows the same person"),
            ("mAP", before.mean_ap, after.mean_ap, "mean average precision over the ranked gallery"),
            ("mINP", before.mean_inp, after.mean_inp, "how early the last true match is found"),
        ],
        figures=[
            ("Training loss", figures.loss_curve(report.curve.steps, report.curve.loss)),
            ("Cumulative matches", figures.cmc_curves({"before": before.cmc, "after": after.cmc})),
            ("Distances before", figures.distance_histogram(before.same, before.different, "before")),
            ("Distances after", figures.distance_histogram(after.same, after.different, "after")),
        ],
    )


def write(report: Report, path: Path) -> None:
    """Renders the page to ``path``, which is either complete or untouched."""
    write_text(path, render(report))


def _data_uri(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
