"""What a run leaves behind while it trains: ``metrics.jsonl``, TensorBoard events, and a progress bar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vifast._files import write_text

METRICS = "metrics.jsonl"


def read_metrics(out: Path) -> list[dict]:
    """The lines of a run's ``metrics.jsonl``, oldest first; a last line cut short by a kill is left out."""
    path = out / METRICS
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class RunLog:
    """Context manager that records scalars by step in the folder ``out`` and shows progress.

    On resumption at ``step`` the records of later steps, which will be trained again, are dropped first. With
    ``out`` None nothing is recorded or shown: one process of several speaks for all. ``name`` is the run's.
    """

    def __init__(self, out: Path | None, *, total: int, step: int = 0, quiet: bool = False, name: str = "training"):
        self.out, self.total, self.step, self.quiet, self.name = out, total, step, quiet, name
        self._shares: dict[str, float] = {}
        self._evaluated: set[int] = set()

    def __enter__(self) -> RunLog:
        if self.out is None:
            return self
        from torch.utils.tensorboard import SummaryWriter

        last = {"kind": "eval", "step": self.total}  # taken again by a run that is resumed at its end
        kept = [r for r in read_metrics(self.out) if r["step"] <= self.step and not last.items() <= r.items()]
        self._evaluated = {record["step"] for record in kept if record["kind"] == "eval"}
        write_text(self.out / METRICS, "".join(json.dumps(record) + "\n" for record in kept))
        self._lines = (self.out / METRICS).open("a", buffering=1)
        self._board = SummaryWriter(self.out / "tensorboard", purge_step=self.step + 1 if self.step else None)
        self._progress = _bar(disable=self.quiet)
        self._progress.start()
        self._task = self._progress.add_task(self.name, total=self.total, completed=self.step, info="")
        return self

    def __exit__(self, *exc: object) -> None:
        if self.out is None:
            return
        self._progress.stop()
        self._board.close()
        self._lines.close()

    def train(
        self, step: int, scalars: Mapping[str, float], *, speed: float, epoch: int, shares: Mapping[str, float]
    ) -> None:
        """Records an optimiser step at ``speed`` images a second, and the ``shares`` of its parts in its time."""
        if self.out is None:
            return
        timed = {f"share_{part}": share for part, share in shares.items()}
        self._write(step, "train", {**scalars, "images_per_second": speed, **timed}, epoch)
        info = f"epoch {epoch + 1}  loss {scalars['loss']:.3f}  {speed:.0f} images/s"
        for part, share in shares.items():
            self._shares[part] = 0.9 * self._shares.get(part, share) + 0.1 * share
        self._progress.below = "  ".join(f"{part} {share:.0%}" for part, share in self._shares.items())
        self._progress.update(self._task, completed=step, info=info)

    def details(self, step: int, tensors: Mapping[str, Tensor], *, epoch: int) -> None:
        """Records what a system observed in a step: scalars, and vectors by their deciles and as histograms."""
        if self.out is None or not tensors:
            return
        tensors = {name: value.detach().float().cpu() for name, value in tensors.items()}
        vectors = {name: value for name, value in tensors.items() if value.dim() > 0}
        deciles = torch.linspace(0, 1, 11)
        values = {name: value.quantile(deciles) if name in vectors else value for name, value in tensors.items()}
        self._write(step, "detail", {name: value.tolist() for name, value in values.items()}, epoch)
        for name, value in vectors.items():
            self._board.add_histogram(f"detail/{name}", value, step)

    def has_evaluation(self, step: int) -> bool:
        """Whether the folder's run was evaluated after this step."""
        return step in self._evaluated

    def evaluation(self, step: int, scalars: Mapping[str, float], *, epoch: int) -> None:
        """Records an evaluation, and shows it above the bar."""
        if self.out is None:
            return
        self._write(step, "eval", scalars, epoch)
        text = "  ".join(f"{name} {100 * value:.1f} %" for name, value in scalars.items())
        self._progress.console.print(f"{self.name}, epoch {epoch}: {text}", highlight=False)

    def _write(self, step: int, kind: str, values: Mapping[str, float | list[float]], epoch: int) -> None:
        self._lines.write(json.dumps({"step": step, "epoch": epoch, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            if not isinstance(value, list):
                self._board.add_scalar(f"{kind}/{name}", value, step)


def _bar(**options):
    """A bar with a line of its own below it, which takes no room from the bar's columns."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Bar(Progress):
        below = ""

        def get_renderables(self):
            yield from super().get_renderables()
            yield Text(self.below, style="dim", no_wrap=True, overflow="ellipsis")

    columns = TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn()
    return Bar(*columns, TextColumn("{task.fields[info]}"), TimeRemainingColumn(), **options)
