"""The page of a lifelong run: what its model knew after every stage, and what it forgot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vifast.data.layouts import NAMES
from vifast.report import Facts, Figures, Page, Section, Table, Tile, Tiles, figures, percent
from vifast.report.figures import Line
from vifast.train.lifelong_config import JOINT, stage_folders
from vifast.train.matrix import Matrix
from vifast.train.record import CONFIG, Run, read_run

SHOWN = {"mean_ap": "mAP", "rank1": "Rank-1"}


def make_lifelong_page(out: Path) -> Page:
    """The page of the lifelong run in ``out``, of the stages that are scored by now.

    Raises:
        FileNotFoundError, ValueError: no stage is, or a file is damaged.
    """
    matrix = Matrix.load(out)
    if not matrix.complete:
        raise ValueError(f"{out}: no stage is scored on all datasets yet")
    stages = [JOINT.join(names) for names in matrix.order]
    runs = [read_run(folder) for folder in stage_folders(out, stages[: matrix.complete])]
    sections: list[Section] = [_tiles(matrix), _matrices(matrix), _curves(matrix)]
    if matrix.complete > 1:
        sections.append(_forgotten(matrix))
    sections += [_stages(runs), _facts(out, matrix, runs)]
    title = f"{out.resolve().name}: {runs[0].config['system'].upper()}, lifelong"
    order = ", then ".join(" with ".join(NAMES.get(name, name) for name in names) for names in matrix.order)
    done = "" if matrix.complete == len(stages) else f" {matrix.complete} of {len(stages)} stages are finished."
    return Page(
        title, f"Trained on {order}. After every stage one model is tested on all that it has seen.{done}", sections
    )


def _tiles(matrix: Matrix) -> Tiles:
    last = matrix.complete - 1
    tiles = [
        Tile(f"mean {name}", percent(matrix.average(last, key)), "over all datasets seen, after the last stage")
        for key, name in SHOWN.items()
    ]
    if last:
        forgot, back = percent(matrix.forgetting(last)), percent(matrix.backward_transfer(last))
        tiles.append(Tile("forgetting", forgot, "mAP below the best that earlier datasets ever had, on average"))
        tiles.append(Tile("backward transfer", back, "mAP of earlier datasets against when they were trained"))
    return Tiles(tiles=tiles)


def _matrices(matrix: Matrix) -> Figures:
    columns = [name for names in matrix.order for name in names]
    rows = [JOINT.join(names) for names in matrix.order[: matrix.complete]]
    shown = []
    for key, name in SHOWN.items():
        values = [[row[c][key] if c in row else None for c in columns] for row in matrix.rows[: matrix.complete]]
        shown.append((f"{name} (%)", figures.heat_map(f"matrix-{key}", rows, columns, values)))
    text = "A row is the model after a stage, a column a dataset."
    return Figures(title="After every stage", text=text, figures=shown)


def _curves(matrix: Matrix) -> Figures:
    names = matrix.seen(matrix.complete - 1)
    shown = []
    for key, name in SHOWN.items():
        lines = [Line(*_over_stages(matrix, dataset, key), series) for series, dataset in enumerate(names)]
        averages = [100 * matrix.average(stage, key) for stage in range(matrix.complete)]
        lines.append(Line(range(1, matrix.complete + 1), averages, None, "mean"))
        shown.append((f"{name} (%)", figures.curves(f"course-{key}", lines, "stage", "")))
    return Figures(title="Over the stages", legend=names, figures=shown)


def _over_stages(matrix: Matrix, name: str, key: str) -> tuple[Sequence[int], Sequence[float]]:
    course = matrix.course(name, key)
    return range(matrix.complete - len(course) + 1, matrix.complete + 1), [100 * score for score in course]


def _forgotten(matrix: Matrix) -> Table:
    last = matrix.complete - 1
    rows = []
    for name in matrix.seen(last - 1):
        course = matrix.course(name)
        numbers = (course[0], max(course), course[-1], max(course) - course[-1], course[-1] - course[0])
        rows.append([name, *(f"{100 * number:.1f}" for number in numbers)])
    means = [f"{100 * value:.1f}" for value in (matrix.forgetting(last), matrix.backward_transfer(last))]
    rows.append(["mean", "", "", "", *means])
    heads = ["mAP (%)", "when trained", "best", "last", "forgetting", "backward transfer"]
    return Table(title="What was forgotten", heads=heads, rows=rows)


def _stages(runs: Sequence[Run]) -> Table:
    rows = [
        [run.folder.name, f"{run.facts['num_classes']:,}", f"{len(run.steps):,}", run.results["protocol"]]
        for run in runs
        if run.results is not None
    ]
    text = "Each folder is a run of its own; vifast report shows it."
    return Table(title="Stages", text=text, heads=["folder", "people", "steps", "scored by"], rows=rows)


def _facts(out: Path, matrix: Matrix, runs: Sequence[Run]) -> Facts:
    last = matrix.complete - 1
    facts = {
        "folder": str(out),
        "seed": str(runs[0].config["seed"]),
        "first trials alone": ", ".join(
            f"mean {name} {percent(matrix.average(last, key, first=True))}" for key, name in SHOWN.items()
        ),
        "commit": runs[-1].facts.get("commit") or "not a checkout",
    }
    return Facts(title="The run", facts=facts, details={"Resolved configuration": (out / CONFIG).read_text()})
