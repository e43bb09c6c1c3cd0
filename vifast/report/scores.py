"""Sections about retrieval that several pages show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vifast.report.sections import RankedQuery, Rankings, Tile, Tiles

SCORES = {
    "rank1": ("Rank-1", "queries whose nearest gallery image shows the same person"),
    "mean_ap": ("mAP", "mean average precision over the ranked gallery"),
    "mean_inp": ("mINP", "how early the last true match is found"),
}


def score_tiles(scores: Mapping[str, float], before: Mapping[str, float] | None = None) -> Tiles:
    """`SCORES` in 0..1, and what they were before."""
    return Tiles(
        tiles=[
            Tile(name, percent(scores[key]), meaning, percent(before[key]) if before is not None else "")
            for key, (name, meaning) in SCORES.items()
        ]
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def rankings(queries: Sequence[RankedQuery]) -> Rankings:
    """Ranked lists with the words that explain them."""
    return Rankings(
        title=f"{len(queries)} queries and their nearest gallery images",
        text="Each row starts with a query; the gallery of the other modality follows, nearest first. Green with a "
        "tick is the same person, red with a cross somebody else. A gallery has only a few images of each person, so "
        "most of a row is red even where every one of them came first.",
        queries=queries,
    )
