"""The command that times the ops. ``vifast.commands`` registers it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vifast import _checks
from vifast._files import require_place, write_text

if TYPE_CHECKING:
    from vifast.bench.compare import Timing

_console = Console()


def bench(
    ops: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="All without a name.")] = None,
    *,
    size: Annotated[str | None, typer.Option(help="For example 64x2048; by default one that is quick.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a card if there is one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also against torch.compile, which takes some seconds an op.")
    ] = False,
    parts: Annotated[bool, typer.Option("--parts", help="Forward and backward apart as well.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
) -> None:
    """Time the ops on this machine against their definitions in eager PyTorch: medians of rounds taken in turn."""
    import torch

    from vifast.bench.compare import DTYPES, choose, compare
    from vifast.bench.machine import environment

    _checks.one_of("dtype", dtype, tuple(DTYPES))
    cases, device = choose(ops or [], size, device)
    if json_file is not None:
        require_place("json", json_file)
    if threads is not None:
        torch.set_num_threads(threads)
    options = {"device": device, "dtype": DTYPES[dtype], "compiled": compiled, "parts": parts}
    timings: list[Timing] = []
    for case, of in track(cases, "timing", console=_console, transient=True, disable=not _console.is_interactive):
        timings += compare(case, of, **options)
    where = environment(device) | {"dtype": dtype}
    words = [str(where["device"]), f"torch {where['torch']}", f"vifast {where['vifast']}", dtype]
    _console.print(", ".join(words), highlight=False)
    _console.print(_table(timings, ["eager", *(["compile"] if compiled else [])], parts), highlight=False)
    if json_file is not None:
        write_text(json_file, json.dumps(where | {"timings": [asdict(timing) for timing in timings]}, indent=2) + "\n")


def _table(timings: Sequence[Timing], rivals: Sequence[str], parts: bool) -> Table:
    """Milliseconds of ours and of the rivals, and how many times as long they take."""
    from vifast.bench.compare import shown

    table = Table(box=None, pad_edge=False)
    names = ["op", "size", *(["pass"] if parts else [])]
    numbers = ["vifast ms", *(head for rival in rivals for head in (f"{rival} ms", "ratio"))]
    for head in names:
        table.add_column(head, no_wrap=True)
    for head in numbers:
        table.add_column(head, justify="right", no_wrap=True)
    for timing in timings:
        row = [timing.op, shown(timing.size), *([timing.part] if parts else []), f"{timing.milliseconds['vifast']:.3f}"]
        for rival in rivals:
            row += [f"{timing.milliseconds[rival]:.3f}", f"{timing.ratio(rival):.2f}"]
        table.add_row(*row)
    return table
