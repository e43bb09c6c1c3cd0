"""The page of one training run, or of several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vifast.data.layouts import NAMES
from vifast.report import Facts, Figures, Page, Section, Table, figures, percent, rankings, score_tiles
from vifast.report.figures import Line
from vifast.report.scores import SCORES
from vifast.train.comparison import group_runs, score_table
from vifast.train.lifelong_page import make_lifelong_page
from vifast.train.matrix import FILE as MATRIX
from vifast.train.ranked import load_ranked
from vifast.train.record import CONFIG, Run, read_run
from vifast.train.run_details import observed, taught
from vifast.train.seen import seen

Coloured = Sequence[tuple[int, Run]]  # runs with the series of their figures


def make_page(folders: Sequence[Path], data: Path | None = None) -> Page:
    """The page of the runs in ``folders``: of one with its ranked lists, of several with a table of their scores.

    Args:
        folders: of runs, finished or not; or a lifelong one alone.
        data: where the dataset, whose images it shows, is; None: where they were in training.

    Raises:
        FileNotFoundError, ValueError: a folder that is not a run's, a damaged file in one.
    """
    folders = list(dict.fromkeys(folders))
    if len(folders) == 1 and (folders[0] / MATRIX).is_file():
        return make_lifelong_page(folders[0])
    runs = [read_run(folder) for folder in folders]
    return _page_of_one(runs[0], data) if len(runs) == 1 else _page_of_several(runs)


def _page_of_one(run: Run, data: Path | None) -> Page:
    sections = [] if run.scores is None else [score_tiles(run.scores)]
    sections += taught(run) + _retrieval([(0, run)], ()) + _training([(0, run)], ()) + observed(run)
    if run.results is not None:
        sections += _trials(run.results["trials"])
    sections += _ranked(run, data) + seen(run, data)
    config = (run.folder / CONFIG).read_text()
    versions = "\n".join(f"{name} {version}" for name, version in run.facts["versions"].items() if version)
    details = {"Resolved configuration": config, "Versions": versions}
    sections.append(Facts(title="The run", facts=_facts(run), details=details))
    return Page(_title(run), _summary(run), sections)


def _page_of_several(runs: Sequence[Run]) -> Page:
    groups = group_runs(runs)
    legend = tuple(groups) if len(groups) > 1 else ()
    coloured = [(series, run) for series, group in enumerate(groups.values()) for run in group]
    sections = [score_table(groups), *_retrieval(coloured, legend), *_training(coloured, legend), _each(groups)]
    details = {name: (group[0].folder / CONFIG).read_text() for name, group in groups.items()}
    facts = {"runs": str(len(runs)), "configurations": str(len(groups)), "protocols": "; ".join(_protocols(runs))}
    sections.append(Facts(title="Configurations", facts=facts, details=details))
    titles = dict.fromkeys(_subject(run) for run in runs)
    return Page(f"{len(runs)} runs: {', '.join(titles)}", "", sections)


def _retrieval(runs: Coloured, legend: Sequence[str]) -> list[Section]:
    shown = []
    for key, (name, _) in SCORES.items():
        lines = [
            Line([record["epoch"] for record in run.evaluations], [100 * record[key] for record in run.evaluations], k)
            for k, run in runs
            if run.evaluations
        ]
        if lines:
            shown.append((f"{name} (%)", figures.curves(key, lines, "epoch", "", small=True)))
    cmc = [figures.cmc_line(run.results["cmc"], k) for k, run in runs if run.results is not None]
    if cmc:
        shown.append(("Cumulative matches (%)", figures.cmc_curves(*cmc, small=True)))
    return [Figures(title="Retrieval", figures=shown, legend=legend, small=True)] if shown else []


def _training(runs: Coloured, legend: Sequence[str]) -> list[Section]:
    runs = [(k, run) for k, run in runs if run.steps]
    if not runs:
        return [Section(title="Training", text="No step has been taken yet.")]
    wide = [
        ("Loss", _curve(runs, "loss", "loss")),
        ("Learning rate", _learning_rates(runs)),
        ("Speed", _curve(runs, "images_per_second", "images per second")),
    ]
    if len(runs) == 1 and (shares := runs[0][1].shares()):
        wide.append(("Time by part", figures.shares("shares", _steps(runs[0][1].steps), shares, "training step")))
    sections = [Figures(title="Training", figures=wide, legend=legend)]
    parts = dict.fromkeys(part for _, run in runs for part in run.parts())
    if parts:
        small = [(part, _curve(runs, part, "", small=True)) for part in parts]
        sections.append(Figures(title="Parts of the loss", figures=small, legend=legend, small=True))
    return sections


def _curve(runs: Coloured, key: str, y_label: str, **options: bool) -> str:
    lines = []
    for series, run in runs:
        having = [record for record in run.steps if key in record]
        if having:
            lines.append(Line(_steps(having), [record[key] for record in having], series))
    return figures.training_curves(key, lines, "training step", y_label, **options)


def _learning_rates(runs: Coloured) -> str:
    lines = [
        Line(_steps(run.steps), [run.config["optimizer"]["lr"] * record["lr_factor"] for record in run.steps], series)
        for series, run in runs
    ]
    return figures.curves("learning-rate", lines, "training step", "learning rate")


def _steps(records: Sequence[dict]) -> list[int]:
    return [record["step"] for record in records]


def _trials(trials: Sequence[dict[str, Any]]) -> list[Table]:
    """The trials of the last evaluation, where there are several."""
    if len(trials) == 1:
        return []
    heads = ["", *(f"{name} (%)" for name, _ in SCORES.values()), "queries", "gallery"]
    rows = [
        [t["name"], *(f"{100 * t[key]:.1f}" for key in SCORES), str(t["queries"]), str(t["gallery"])] for t in trials
    ]
    return [Table(title="Trials", heads=heads, rows=rows)]


def _ranked(run: Run, data: Path | None) -> list[Section]:
    ranked = load_ranked(run.folder)
    if not ranked:
        return []
    root = Path(run.config["data"]) if data is None else data
    try:
        return [rankings([one.pictures(root) for one in ranked])]
    except (OSError, ValueError) as error:
        words = f"Not shown: the images are not at hand ({error}); --data ROOT says where the dataset is."
        return [Section(title="Ranked lists", text=words)]


def _each(groups: dict[str, list[Run]]) -> Table:
    """A row for every run, with the time that the parts of its steps took."""
    parts = dict.fromkeys(part for group in groups.values() for run in group for part in run.shares())
    rows = []
    for name, group in groups.items():
        for run in group:
            shares = {part: f"{100 * np.mean(values):.0f}" for part, values in run.shares().items()}
            speed = "–" if run.speed is None else f"{run.speed:,.0f}"
            row = [name, str(run.folder), str(run.config["seed"]), f"{run.epochs} of {run.config['epochs']}", speed]
            rows.append([*row, *(shares.get(part, "–") for part in parts)])
    heads = ["", "run", "seed", "epochs", "images/s", *(f"{part} (%)" for part in parts)]
    return Table(title="Runs", text="Speeds are medians; parts are shares of a step's time.", heads=heads, rows=rows)


def _facts(run: Run) -> dict[str, str]:
    config = run.config
    facts = {
        "folder": str(run.folder),
        "trained on": f"{run.facts['num_classes']:,} people of {config['data']}",
        "training": f"{run.epochs} of {config['epochs']} epochs, {len(run.steps):,} steps, seed {config['seed']}",
    }
    if run.speed is not None:
        facts["speed"] = f"{run.speed:,.0f} images per second (median)"
    best_by = config.get("best_by", "mean_ap")
    if run.evaluations:
        best = max(run.evaluations, key=lambda record: record[best_by])
        facts["best"] = f"{SCORES[best_by][0]} {percent(best[best_by])} after epoch {best['epoch']}"
    return facts | {"commit": run.facts.get("commit") or "not a checkout"}


def _protocols(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.results["protocol"] for run in runs if run.results is not None))


def _subject(run: Run) -> str:
    name = run.config["dataset"]["name"]
    return f"{run.config['system'].upper()} on {NAMES.get(name, name)}"


def _title(run: Run) -> str:
    return f"{run.folder.resolve().name}: {_subject(run)}"


def _summary(run: Run) -> str:
    if run.results is not None:
        return f"Scores of the last epoch under {run.results['protocol']}."
    state = f"Not finished: {run.epochs} of {run.config['epochs']} epochs."
    if run.scores is None:
        return f"{state} Not evaluated yet."
    return f"{state} The scores are those after epoch {run.scores['epoch']}."
