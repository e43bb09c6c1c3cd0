"""The commands. Each imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import vifast
from vifast import commands_bench, commands_data, commands_lifelong, commands_retrieval

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Visible-infrared person re-identification: train, evaluate, search, demonstrate.",
)
_console = Console()

Out = Annotated[Path, typer.Option(help="Folder that is created for the results.")]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"vifast {vifast.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    out: Out = Path("vifast-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the dataset and of the training.")] = 0,
) -> None:
    """Write a synthetic dataset, train a small IDKL and AGW on it, and show the result as one HTML page."""
    from vifast.demo import run_demo

    result = run_demo(out, seed=seed)
    _print_scores({"untrained": result["before"], "AGW": result["agw"], "IDKL": result["after"]})
    _console.print(f"{result['seconds']:.0f} s; open [bold]{out / 'report.html'}[/bold]", highlight=False)


@app.command()
def synth(
    layout: Annotated[
        str, typer.Option(help="Dataset whose folder layout is written; lifelong: all four, each in its own domain.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    ids: Annotated[int, typer.Option(help="Number of people.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same files.")] = 0,
    domain: Annotated[
        str | None, typer.Option(help="Clothes, light and sensors: plain, or in the manner of a dataset.")
    ] = None,
) -> None:
    """Write a synthetic dataset that the real readers read."""
    from vifast.data import synthetic

    with _console.status(f"drawing {ids} people"):
        if layout == "lifelong":
            if domain is not None:
                raise ValueError(f"domain: expected none for lifelong, which has one for each layout, got {domain!r}")
            synthetic.write_benchmark(out, num_ids=ids, seed=seed)
        else:
            synthetic.write(layout, out, num_ids=ids, seed=seed, domain=domain or "plain")
    _console.print(f"wrote {layout} with {ids} people to [bold]{out}[/bold]", highlight=False)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="Preset, or YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="For example data=ROOT epochs=2.")
    ] = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Folder that is created for the run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the configuration, and what the run would take.")
    ] = False,
) -> None:
    """Train a system; Ctrl-C saves it after the step under way, --resume goes on from there to the same result."""
    from vifast.train.config import build_config, read_config
    from vifast.train.lifelong_config import build_lifelong, is_lifelong
    from vifast.train.loop import Stopped
    from vifast.train.stages import train

    given = read_config(config, overrides or [])
    lifelong = is_lifelong(given)
    resolved = (build_lifelong if lifelong else build_config)(given)
    if dry_run:
        commands_lifelong.dry_run(resolved) if lifelong else _dry_run(resolved, out or Path())
        return
    if out is None:
        raise ValueError("out: expected the folder to create, --out DIR")
    run = commands_lifelong.train if lifelong else train
    try:
        run(resolved, out, resume=resume, opening=commands_data.bar)
    except Stopped as stopped:
        _console.print(f"{stopped}; the same command with --resume goes on", highlight=False)
        raise
    _console.print(f"results in [bold]{out}[/bold]", highlight=False)


def _dry_run(config, out: Path) -> None:
    from vifast.train.config import dump_config
    from vifast.train.plan import plan_run
    from vifast.train.stages import stages

    for name, _, stage in stages(config, out):
        _console.print(f"# {name}\n{dump_config(stage)}", highlight=False)
        with _console.status("taking one step of a few images"):
            plan = plan_run(stage)
        commands_lifelong.print_plan(plan)


for command in (commands_retrieval.evaluate, commands_retrieval.search, commands_retrieval.rerank):
    app.command()(command)
app.command()(commands_bench.bench)
app.add_typer(commands_data.app, name="data")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(help="Page to write; by default report.html, of one run in its folder.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Root of the dataset for its images, where it is not where it was.")
    ] = None,
) -> None:
    """Write one page of training runs: curves, scores, ranked lists; of several also what sets them apart."""
    from vifast._files import require_place
    from vifast.report import write
    from vifast.train.run_page import make_page

    if out is not None:
        require_place("out", out)
    with _console.status("drawing figures"):
        page = make_page(runs, data)
        out = out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
        require_place("out", out)
        write(page, out)
    _console.print(f"wrote [bold]{out}[/bold]", highlight=False)


@app.command()
def doctor() -> None:
    """Print versions, back ends and devices, and what is missing and why it matters."""
    from vifast.train.doctor import diagnose

    table = Table("part", "state", "note", box=None, pad_edge=False)
    marks = {True: "[green]ok[/green]", False: "[yellow]missing[/yellow]"}
    for finding in diagnose():
        table.add_row(finding.part, f"{marks[finding.present]} {finding.state}", escape(finding.note))
    _console.print(table, highlight=False)


def _print_scores(rows: dict[str, dict[str, float]]) -> None:
    table = Table("", "Rank-1", "mAP", "mINP", box=None, pad_edge=False)
    for name, scores in rows.items():
        values = (f"{100 * scores[key]:.1f} %" for key in ("rank1", "mean_ap", "mean_inp"))
        table.add_row(name, *values)
    _console.print(table, highlight=False)
