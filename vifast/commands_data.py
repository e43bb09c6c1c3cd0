"""The commands about datasets on disk: ``data check``, ``show`` and ``cache``. ``vifast.commands`` registers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

import vifast

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Look at a dataset on disk.")
_console = Console()

LISTED = 20  # lines of damage without --all
Root = Annotated[Path, typer.Argument(help="Folder of SYSU-MM01, RegDB, LLCM or HITSZ-VCM.")]


def bar(what: str = ""):
    """Context manager that shows how far what it holds is, in a terminal."""
    options = {"console": _console, "transient": True, "disable": not _console.is_interactive}
    return vifast.use_progress(lambda work, name: track(work, f"{name} {what}", **options))


@app.command()
def check(
    root: Root,
    quick: Annotated[bool, typer.Option("--quick", help="Do not decode the images.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="List all that is wrong, however long.")] = False,
) -> None:
    """Count what a dataset holds against what it should, and name what is wrong; status 1 if anything is."""
    from vifast.data.inspection import inspect

    with _console.status("reading" if quick else "reading and decoding every image"):
        found = inspect(root, decode=not quick)
    _console.print(f"{found.dataset} at [bold]{escape(str(found.root))}[/bold]", highlight=False)
    table = Table("", f"expected ({found.source})", "found", "", box=None, pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    for name, expected, number in found.rows:
        mark = "" if expected is None else "[green]ok[/green]" if expected == number else "[red]differs[/red]"
        words = ("–" if value is None else f"{value:,}" for value in (expected, number))
        table.add_row(escape(name), *words, mark)
    _console.print(table, highlight=False)
    shown = found.damage if everything else found.damage[:LISTED]
    for note in shown:
        _console.print(f"[red]damage[/red] {escape(note)}", highlight=False, soft_wrap=True)
    if len(shown) < len(found.damage):
        _console.print(f"and {len(found.damage) - len(shown)} more; --all lists them", highlight=False)
    if found.sound:
        _console.print("[green]sound[/green]: everything is there" + ("" if quick else ", every image decodes"))
        return
    _console.print(f"[red]not sound[/red]: {len(found.damage)} things damaged", highlight=False)
    raise typer.Exit(1)


@app.command()
def show(
    root: Root,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("contact-sheet.png"),
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    ids: Annotated[int, typer.Option(min=1, help="Number of people.")] = 8,
    per_camera: Annotated[int, typer.Option(min=1, help="Images of a person by a camera.")] = 2,
    augment: Annotated[
        str | None, typer.Option(help="Show them augmented: agw, caj, idkl, dakd, dakd-regdb, ckda.")
    ] = None,
) -> None:
    """Write a contact sheet: a row for every person, columns by camera, visible before infrared (IR)."""
    from vifast import _checks
    from vifast.data import Augment, contact_sheet
    from vifast.data.layouts import READERS, recognise
    from vifast.data.records import joined

    _checks.one_of("split", split, ("train", "test"))
    policy = None if augment is None else Augment.preset(augment)
    with _console.status("reading"):
        dataset = READERS[recognise(root)](root, on_damage="skip")
        if split == "train":
            samples, names = dataset.train, dataset.identities
        else:
            samples, names = joined(dataset.query, dataset.gallery), None
        contact_sheet.write(samples, out, num_ids=ids, per_camera=per_camera, names=names, policy=policy)
    _console.print(f"wrote {dataset.name}, {split}, to [bold]{escape(str(out))}[/bold]", highlight=False)


@app.command()
def cache(
    root: Root,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="For example dataset.height=256.")
    ] = None,
    *,
    config: Annotated[str | None, typer.Option(help="Preset or YAML file; by default AGW's of the dataset.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Decode everything again.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all that is kept, and look for damage.")] = False,
) -> None:
    """Decode a dataset once, for all training runs and evaluations with dataset.cache=disk."""
    from vifast.data.layouts import recognise
    from vifast.train.config import load_config
    from vifast.train.datasets import image_cache, open_dataset

    given = [f"data={json.dumps(str(root))}", "dataset.cache=disk", *(overrides or [])]
    settings = load_config(config or f"agw-{recognise(root)}", given)
    dataset = open_dataset(settings)
    for split in ("train", "query", "gallery"):
        with bar(split):
            found = image_cache(getattr(dataset, split), settings, rebuild=rebuild)
            if verify:
                found.verify()
        megabytes = f"{found.path.stat().st_size / 1e6:,.1f} MB"
        _console.print(
            f"{split}: {len(found):,} images, {megabytes}, {escape(str(found.path))}", highlight=False, soft_wrap=True
        )
