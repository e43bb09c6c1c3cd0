"""``train`` of a configuration with an ``order`` of datasets. ``vifast.commands`` calls it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from vifast.train.lifelong_config import LifelongConfig
    from vifast.train.matrix import Matrix
    from vifast.train.plan import Plan

_console = Console()


def train(config: LifelongConfig, out: Path, *, resume: bool, opening: Callable[[], AbstractContextManager]) -> None:
    """Trains a lifelong run in ``out``, and prints what came of it; ``opening`` is entered to open the datasets."""
    from vifast.train.lifelong import Lifelong

    with opening():
        told = partial(_console.print, highlight=False)
        run = Lifelong(config, out, resume=resume, told=told)
    print_matrix(run.fit())


def dry_run(config: LifelongConfig) -> None:
    """Prints the configuration, and what every stage would take."""
    from vifast.train.lifelong import plan_stages
    from vifast.train.lifelong_config import dump_lifelong

    _console.print(dump_lifelong(config), highlight=False)
    with _console.status("taking one step of a few images"):
        plans = plan_stages(config)
    for title, plan in plans:
        _console.print(f"# {title}", highlight=False)
        print_plan(plan)


def print_plan(plan: Plan) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in plan.rows():
        table.add_row(*row)
    _console.print(table, highlight=False)


def print_matrix(matrix: Matrix) -> None:
    """mAP and Rank-1 of every stage's model by dataset, and what the last one forgot."""
    last = matrix.complete - 1
    names = matrix.seen(last)
    table = Table("mAP / Rank-1 after", *names, "mean", box=None, pad_edge=False)
    for stage in range(matrix.complete):
        row = matrix.rows[stage]
        pairs = [(row[name]["mean_ap"], row[name]["rank1"]) if name in row else () for name in names]
        pairs.append((matrix.average(stage), matrix.average(stage, "rank1")))
        table.add_row("+".join(matrix.order[stage]), *(" / ".join(f"{100 * v:.1f}" for v in pair) for pair in pairs))
    _console.print(table, highlight=False)
    if last:
        words = {"forgetting": matrix.forgetting, "backward transfer": matrix.backward_transfer}
        told = (
            f"{name} {100 * of(last):+.1f} mAP, {100 * of(last, 'rank1'):+.1f} Rank-1" for name, of in words.items()
        )
        _console.print("; ".join(told), highlight=False)
