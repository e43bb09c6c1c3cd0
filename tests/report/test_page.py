import html.parser
import re

import numpy as np
import pytest

from vifast.report import (
    Cell,
    Facts,
    Figures,
    Page,
    RankedQuery,
    Section,
    Table,
    figures,
    rankings,
    render,
    score_tiles,
    write,
)


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


def make_page(**changes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 24, 12, 3), dtype=np.uint8)
    queries = [RankedQuery(images[0], list(images[1:4]), [True, False, True], "person 7")] * 2
    after, before = ({"rank1": value, "mean_ap": value, "mean_inp": value} for value in (0.875, 0.1))
    svg = figures.cmc_curves(figures.cmc_line([0.875, 0.9, 1.0]))
    sections = {
        "tiles": score_tiles(after, before),
        "figures": Figures(title="Retrieval", figures=[("CMC <1>", svg)], legend=["one run", "lr=<2>"], small=True),
        "rankings": rankings(queries),
        "note": Section(text="Nothing <more> to see."),
        "table": Table(title="Scores", heads=["", "R-1"], rows=[["trial 0", Cell("3 (0.1)", "hit")]]),
        "facts": Facts(title="Run", facts={"seconds": "12.3"}, details={"Configuration": "epochs: 3\n"}),
    }
    return Page("A <run> & its page", "What was done.", list((sections | changes).values()))


@pytest.fixture(scope="module")
def page():
    return render(make_page())


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


def test_every_section_shows_what_it_holds(page):
    assert "<span>10.0 % &rarr; </span><b>87.5 %</b>" in page
    assert "<h3>CMC &lt;1&gt;</h3><svg" in page
    assert re.findall(r"var\(--s(\d)\)\"></i>(.*?)</li>", page) == [("1", "one run"), ("2", "lr=&lt;2&gt;")]
    assert 'class="figures small"' in page
    assert "<h2>2 queries and their nearest gallery images</h2>" in page
    assert "<p>Nothing &lt;more&gt; to see.</p>" in page
    assert '<td class="hit">3 (0.1)</td>' in page
    assert "<td>seconds</td><td>12.3</td>" in page
    assert "<summary>Configuration</summary><pre>epochs: 3\n</pre>" in page


def test_sections_come_in_their_order(page):
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Retrieval",
        "2 queries and their nearest gallery images",
        "Scores",
        "Run",
    ]


def test_write_replaces_the_page_whole(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(AttributeError):
        write(make_page(rankings=rankings([None])), path)
    assert path.read_text() == "old"
    write(make_page(), path)
    assert path.read_text().startswith("<!doctype html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
