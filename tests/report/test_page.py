import html.parser
import re

import numpy as np
import pytest

from vifast.report import Curve, Metrics, RankedQuery, Report, render, write


class _Tags(html.parser.HTMLParser):
    """Collects tags, and fails on a closing tag that does not match."""

    VOID = frozenset({"meta", "img", "br", "link", "use", "path"})

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def make_report(**changes):
    rng = np.random.default_rng(0)
    same, different = rng.random(200), 0.5 + rng.random(400)
    images = rng.integers(0, 256, (8, 24, 12, 3), dtype=np.uint8)
    values = {
        "title": "A <run> & its page",
        "summary": "What was done.",
        "before": Metrics(0.1, 0.15, 0.05, [0.1, 0.2, 0.3], same, different),
        "after": Metrics(0.875, 0.8, 0.6, [0.875, 0.9, 1.0], same, different),
        "curve": Curve(list(range(1, 81)), list(np.linspace(4, 1, 80))),
        "queries": [RankedQuery(images[0], list(images[1:4]), [True, False, True], "person 7")] * 2,
        "facts": {"seconds": "12.3", "torch": "2.x"},
        "config": "epochs: 3\n",
    }
    return Report(**{**values, **changes})


@pytest.fixture(scope="module")
def page():
    return render(make_report())


def test_page_is_well_formed_and_escaped(page):
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert "A &lt;run&gt; &amp; its page" in page


def test_page_is_self_contained(page):
    tags = _Tags()
    tags.feed(page)
    sources = [attrs["src"] for _, attrs in tags.seen if "src" in attrs]
    assert len(sources) == 2 * 4
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "iframe"}
    assert not re.search(r'(?:href|src)="(?!#|data:)', re.sub(r'xlink:href="#', "", page))


def test_hits_and_misses_are_marked_in_order(page):
    ranking = page.split('<div class="ranking">')[1]
    assert re.findall(r'class="(hit|miss)"', ranking) == ["hit", "miss", "hit"]
    assert re.findall(r"<span>(.*?)</span>", ranking) == ["1 ✓", "2 ✗", "3 ✓"]


def test_numbers_facts_and_configuration_are_shown(page):
    assert "10.0 % &rarr; </span><b>87.5 %</b>" in page
    assert "<td>seconds</td><td>12.3</td>" in page
    assert "<pre>epochs: 3\n</pre>" in page


def test_write_replaces_the_page_whole(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(AttributeError):
        write(make_report(queries=[None]), path)
    assert path.read_text() == "old"
    write(make_report(), path)
    assert path.read_text().startswith("<!doctype html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
