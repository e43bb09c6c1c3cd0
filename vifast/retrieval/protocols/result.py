"""What a protocol returns: metrics of every trial and their means, as a table, as JSON, as a figure."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vifast._files import write_bytes, write_text
from vifast.retrieval.ranking import RankMetrics

RANKS = (1, 5, 10, 20)


@dataclass(frozen=True, eq=False)
class ProtocolResult:
    """Ranking metrics under a published protocol; shares are fractions of 1.

    Attributes:
        protocol: its name in words, with everything that distinguishes it from its variants.
        settings: ``metric``, ``exclude`` and ``cmc`` of :func:`vifast.retrieval.evaluate`, and the protocol's own.
        trials: metrics of every trial (split, direction), in order.
        names: of the trials.
        sizes: gallery rows of the trials.
        cmc: [topk] mean over the trials.
        mean_ap: mean over the trials.
        mean_inp: mean over the trials.
    """

    protocol: str
    settings: Mapping[str, object]
    trials: tuple[RankMetrics, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    cmc: Tensor = field(init=False)
    mean_ap: float = field(init=False)
    mean_inp: float = field(init=False)

    def __post_init__(self):
        mean = {
            "cmc": torch.stack([trial.cmc for trial in self.trials]).mean(0),
            "mean_ap": sum(trial.mean_ap for trial in self.trials) / len(self.trials),
            "mean_inp": sum(trial.mean_inp for trial in self.trials) / len(self.trials),
        }
        for name, value in mean.items():
            object.__setattr__(self, name, value)

    @property
    def rank1(self) -> float:
        return float(self.cmc[0])

    def scalars(self) -> dict[str, float]:
        """``rank1``, ``mean_ap`` and ``mean_inp``."""
        return {"rank1": self.rank1, "mean_ap": self.mean_ap, "mean_inp": self.mean_inp}

    def to_dict(self) -> dict:
        """Plain numbers, strings, lists: the means, then every trial."""
        trials = zip(self.names, self.sizes, self.trials, strict=True)
        return {
            "protocol": self.protocol,
            "settings": dict(self.settings),
            **_numbers(self),
            "trials": [
                {"name": name, "gallery": size, "queries": trial.num_valid, **_numbers(trial)}
                for name, size, trial in trials
            ],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, path: str | os.PathLike) -> None:
        """Writes ``to_json()`` to a file that is either complete or as it was before."""
        write_text(path, self.to_json())

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The table: heads, and a row of words for every trial and their mean (in percent)."""
        ranks = [k for k in RANKS if k <= len(self.cmc)]
        heads = ["", *(f"R-{k}" for k in ranks), "mAP", "mINP", "queries", "gallery"]

        def row(name, metrics, *counts):
            shares = [*(float(metrics.cmc[k - 1]) for k in ranks), metrics.mean_ap, metrics.mean_inp]
            return [name, *(f"{100 * share:.2f}" for share in shares), *map(str, counts)]

        trials = zip(self.names, self.trials, self.sizes, strict=True)
        table = [row(name, trial, trial.num_valid, size) for name, trial, size in trials]
        if len(table) > 1:
            table.append(row("mean", self, "", ""))
        return heads, table

    def __str__(self) -> str:
        heads, table = self.rows()
        widths = [max(map(len, column)) for column in zip(heads, *table, strict=True)]
        lines = [
            "  ".join(word.rjust(width) if i else word.ljust(width) for i, (word, width) in enumerate(cells)).rstrip()
            for cells in (zip(line, widths, strict=True) for line in (heads, *table))
        ]
        return "\n".join([self.protocol, *lines])

    def plot(self, path: str | os.PathLike | None = None):
        """Mean CMC curve in percent, with a thin line for every trial; needs matplotlib.

        Args:
            path: where to save the figure, its format by its suffix; None does not.

        Returns:
            matplotlib's ``Figure``.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        ranks = range(1, len(self.cmc) + 1)
        if len(self.trials) > 1:
            for trial in self.trials:
                axes.plot(ranks, 100 * trial.cmc.numpy(), color="0.75", linewidth=0.8)
        label = f"R-1 {100 * self.rank1:.1f}, mAP {100 * self.mean_ap:.1f}, mINP {100 * self.mean_inp:.1f} %"
        axes.plot(ranks, 100 * self.cmc.numpy(), marker="o", markersize=3, label=label)
        axes.set_xlabel("rank k")
        axes.set_ylabel("queries with a hit (%)")
        axes.set_title(self.protocol, fontsize="small", wrap=True)
        axes.set_ylim(0, 102)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", frameon=False)
        if path is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=Path(path).suffix.removeprefix(".") or "png", dpi=150)
            write_bytes(path, buffer.getvalue())
        return figure


def _numbers(metrics) -> dict:
    return {
        "rank1": float(metrics.cmc[0]),
        "mean_ap": metrics.mean_ap,
        "mean_inp": metrics.mean_inp,
        "cmc": metrics.cmc.tolist(),
    }
