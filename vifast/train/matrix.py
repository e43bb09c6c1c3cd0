"""What a model knows of every dataset after every stage, and what it forgot; ``matrix.json`` of a lifelong run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vifast._files import write_text

FILE = "matrix.json"
KEYS = ("mean_ap", "rank1", "mean_inp")
FIRST = "first_trial"


@dataclass(frozen=True)
class Matrix:
    """Scores a[t, d] after stage t on dataset d, for the datasets seen by then.

    ``order`` has the datasets of every stage, ``rows`` every stage's scores by dataset: the `KEYS`, means over the
    protocol's trials, and under ``"first_trial"`` those of the first alone, which some papers report.

    >>> score = lambda value: {key: value for key in KEYS}
    >>> matrix = Matrix((("a",), ("b",)), [{"a": score(0.5)}, {"a": score(0.25), "b": score(0.75)}])
    >>> matrix.average(1), matrix.forgetting(1), matrix.backward_transfer(1)
    (0.5, 0.25, -0.25)
    """

    order: Sequence[Sequence[str]]
    rows: list[dict[str, dict[str, Any]]] = field(default_factory=list)

    def seen(self, stage: int) -> list[str]:
        """The datasets that were trained on up to a stage (from 0)."""
        return [name for names in self.order[: stage + 1] for name in names]

    def missing(self, stage: int) -> list[str]:
        """Those of `seen` that were not scored after it."""
        row = self.rows[stage] if stage < len(self.rows) else {}
        return [name for name in self.seen(stage) if name not in row]

    def put(self, stage: int, name: str, scores: Mapping[str, Any]) -> None:
        """Adds a[stage, name]; the stages before are complete."""
        while len(self.rows) <= stage:
            self.rows.append({})
        self.rows[stage][name] = dict(scores)

    @property
    def complete(self) -> int:
        """How many stages are scored on all that they have seen."""
        return next((t for t in range(len(self.order)) if self.missing(t)), len(self.order))

    def average(self, stage: int, key: str = "mean_ap", *, first: bool = False) -> float:
        """Mean of a[stage, d] over the datasets seen."""
        values = [self._at(stage, name, key, first) for name in self.seen(stage)]
        return sum(values) / len(values)

    def forgetting(self, stage: int, key: str = "mean_ap", *, first: bool = False) -> float | None:
        """Mean of max over t <= stage of a[t, d], less a[stage, d], over the datasets of earlier stages; None at the
        first."""
        return self._over_old(stage, lambda scores: max(scores) - scores[-1], key, first)

    def backward_transfer(self, stage: int, key: str = "mean_ap", *, first: bool = False) -> float | None:
        """Mean of a[stage, d] - a[d, d] over the datasets of earlier stages; None at the first."""
        return self._over_old(stage, lambda scores: scores[-1] - scores[0], key, first)

    def course(self, name: str, key: str = "mean_ap", *, first: bool = False) -> list[float]:
        """a[t, name] from the stage that trained it to the last complete one."""
        start = next(t for t, names in enumerate(self.order) if name in names)
        return [self._at(t, name, key, first) for t in range(start, self.complete)]

    def summary(self, *, first: bool = False) -> dict[str, dict[str, list[float | None]]]:
        """Average, forgetting and backward transfer by key, of every complete stage."""
        measures = {
            "average": self.average,
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
        }
        return {
            key: {name: [of(t, key, first=first) for t in range(self.complete)] for name, of in measures.items()}
            for key in KEYS
        }

    def save(self, out: Path) -> None:
        """Writes ``matrix.json``, complete or as it was before."""
        data = {
            "order": [list(names) for names in self.order],
            "stages": self.rows,
            "summary": self.summary(),
            "summary_first_trial": self.summary(first=True),
        }
        write_text(out / FILE, json.dumps(data, indent=2) + "\n")

    @classmethod
    def load(cls, out: Path) -> Matrix:
        """Raises ValueError naming the file if it is damaged."""
        try:
            data = json.loads((out / FILE).read_text())
            return cls(tuple(map(tuple, data["order"])), [dict(row) for row in data["stages"]])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{out / FILE}: not the scores of a lifelong run ({error})") from error

    def _at(self, stage: int, name: str, key: str, first: bool) -> float:
        scores = self.rows[stage][name]
        return (scores.get(FIRST, scores) if first else scores)[key]

    def _over_old(self, stage: int, change: Callable[[list[float]], float], key: str, first: bool) -> float | None:
        old = self.seen(stage - 1) if stage else []
        courses = [self.course(name, key, first=first) for name in old]
        start = {name: t for t, names in enumerate(self.order) for name in names}
        changes = [change(course[: stage + 1 - start[name]]) for name, course in zip(old, courses, strict=True)]
        return sum(changes) / len(changes) if changes else None
