"""One self-contained HTML page: no script, no link, every figure and image inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vifast._files import write_text
from vifast.report.sections import Section


@dataclass(frozen=True)
class Page:
    title: str
    summary: str
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as a string of HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("vifast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(uri=_data_uri, zip=zip, template=lambda section: f"{type(section).__name__}.html.j2")
    return templates.get_template("page.html.j2").render(page=page)


def write(page: Page, path: Path) -> None:
    """Renders the page to ``path``, which is either complete or untouched."""
    write_text(path, render(page))


def _data_uri(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
