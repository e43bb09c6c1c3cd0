"""The demo: synthetic people, a small IDKL and a small AGW trained on them, and a page that shows what they learned."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vifast._files import write_text
from vifast.data import Dataset, synthetic
from vifast.report import Facts, Figures, Page, Table, figures, rankings, score_tiles, write
from vifast.report.scores import SCORES, percent
from vifast.train.config import dump_config, load_config
from vifast.train.evaluate import Evaluation
from vifast.train.log import read_metrics
from vifast.train.loop import Trainer
from vifast.train.provenance import git_commit, versions
from vifast.train.ranked import rank_queries

# Many people with few pictures each: what a small network needs to recognise people it has not seen.
PEOPLE = {"num_ids": 632, "num_test": 32, "images_per_camera": 1}
# The baseline: of the preset, all but the system.
AGW = ("system=agw", "options={backbone: resnet_tiny, non_local: [0, 0, 0, 0]}")
SUMMARY = (
    "Drawn people were photographed by four visible and two infrared cameras. Two small networks, IDKL and the "
    "baseline AGW, were trained to recognise them across the two kinds of pictures; the numbers and rankings below are "
    "of people they have never seen."
)
SHOWN = (1, 5, 10, 20)  # ranks of the table


def run_demo(out: Path, *, seed: int = 0, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Writes ``report.html``, ``metrics.json``, the dataset (``data/``) and the runs (``run/``, ``agw/``) into ``out``.

    ``overrides`` change the preset ``demo`` for both systems, as on the command line of ``vifast train``.

    Returns:
        What ``metrics.json`` holds: ``before`` and ``after`` training IDKL, and ``agw`` after training that, with
        ``rank1``, ``mean_ap`` and ``mean_inp`` in 0..1 on identities that were not trained on, and ``seconds`` for
        everything.

    Raises:
        FileExistsError: ``out`` is not an empty or a new folder.
    """
    start = time.perf_counter()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out: expected a new or an empty folder, got {out}")
    common = [f"data={json.dumps(str(out / 'data'))}", f"seed={seed}"]
    idkl, agw = (load_config("demo", [*common, *system, *overrides]) for system in ((), AGW))
    synthetic.write("sysu", out / "data", seed=seed, **PEOPLE)
    trainer, baseline = Trainer(idkl, out / "run"), Trainer(agw, out / "agw")
    before = trainer.evaluate()
    scores = {"before": before, "after": trainer.fit(), "agw": baseline.fit()}
    write(_page(trainer, baseline, scores, time.perf_counter() - start), out / "report.html")
    result = {name: evaluation.scores.scalars() for name, evaluation in scores.items()}
    result["seconds"] = time.perf_counter() - start
    write_text(out / "metrics.json", json.dumps(result, indent=2) + "\n")
    return result


def _page(trainer: Trainer, baseline: Trainer, scores: Mapping[str, Evaluation], seconds: float) -> Page:
    config, dataset = trainer.config, trainer.dataset
    before, after, agw = (scores[name] for name in ("before", "after", "agw"))
    steps = [record for record in read_metrics(trainer.out) if record["kind"] == "train"]
    loss = figures.Line([record["step"] for record in steps], [record["loss"] for record in steps])
    cmc = figures.cmc_curves(
        figures.cmc_line(before.scores.cmc, None, "untrained"),
        figures.cmc_line(agw.scores.cmc, 1, "AGW"),
        figures.cmc_line(after.scores.cmc, 0, "IDKL"),
    )
    found = versions()
    facts = {
        "systems": ", ".join(f"{one.config.system} of {_size(one):,} parameters" for one in (trainer, baseline)),
        "trained on": f"{len(dataset.train):,} images of {dataset.num_labels} people",
        "tested on": f"{len(dataset.query)} infrared queries against {len(dataset.trials)} galleries of "
        f"{len(dataset.trials[0])} visible images, {len(np.unique(dataset.query.labels))} other people",
        "training": f"{config.epochs} epochs, {len(steps)} steps, seed {config.seed}, each system",
        "time": f"{seconds:.0f} s with the dataset, both systems and their evaluations",
        "versions": ", ".join(f"{name} {found[name]}" for name in ("vifast", "torch", "python")),
        "commit": git_commit() or "not a checkout",
    }
    return Page(
        "vifast demo: the same person, by day and by night",
        SUMMARY,
        [
            score_tiles(after.scores.scalars(), before.scores.scalars()),
            Figures(
                title="Training and retrieval",
                figures=[
                    ("Training loss of IDKL", figures.training_curves("loss", [loss], "training step", "loss")),
                    ("Cumulative matches", cmc),
                    ("Distances by IDKL before training", _distances(before, dataset, "before")),
                    ("Distances by IDKL after", _distances(after, dataset, "after")),
                ],
            ),
            Table(
                title="IDKL beside AGW",
                text="Means of all queries and galleries.",
                heads=["", *(f"Rank-{rank}" for rank in SHOWN), *(SCORES[name][0] for name in ("mean_ap", "mean_inp"))],
                rows=[_row("untrained", before), _row("AGW", agw), _row("IDKL", after)],
            ),
            rankings([ranked.pictures(dataset.root) for ranked in rank_queries(after, dataset)]),
            Facts(
                title="The runs",
                facts=facts,
                details={
                    f"Resolved configuration of {one.config.system}": dump_config(one.config)
                    for one in (trainer, baseline)
                },
            ),
        ],
    )


def _row(name: str, evaluation: Evaluation) -> list[str]:
    scores = evaluation.scores
    ranks = (float(scores.cmc[min(rank, len(scores.cmc)) - 1]) for rank in SHOWN)
    return [name, *map(percent, (*ranks, scores.mean_ap, scores.mean_inp))]


def _size(trainer: Trainer) -> int:
    return sum(p.numel() for p in trainer.system.parameters())


def _distances(evaluation: Evaluation, dataset: Dataset, name: str) -> str:
    distances = 1 - (evaluation.query @ evaluation.gallery.T).numpy()  # cosine, of features that have unit length
    same = dataset.query.labels[:, None] == dataset.gallery.labels
    return figures.distance_histogram(distances[same], distances[~same], name)
