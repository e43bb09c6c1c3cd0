"""The demo: a synthetic dataset, a small system trained on it, and a page that shows what it learned."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vifast._files import write_text
from vifast.data import Dataset, synthetic
from vifast.report import Facts, Figures, Page, figures, rankings, score_tiles, write
from vifast.train.config import dump_config, load_config
from vifast.train.evaluate import Evaluation
from vifast.train.log import read_metrics
from vifast.train.loop import Trainer
from vifast.train.provenance import git_commit, versions
from vifast.train.ranked import rank_queries

# Many people with few pictures each: what a small network needs to recognise people it has not seen.
PEOPLE = {"num_ids": 632, "num_test": 32, "images_per_camera": 1}
SUMMARY = (
    "Drawn people were photographed by four visible and two infrared cameras. A small network was trained to "
    "recognise them across the two kinds of pictures; the numbers and rankings below are of people it has never seen."
)


def run_demo(out: Path, *, seed: int = 0, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Writes ``report.html``, ``metrics.json``, the dataset (``data/``) and the run (``run/``) into ``out``.

    ``overrides`` change the preset ``demo``, as on the command line of ``vifast train``.

    Returns:
        What ``metrics.json`` holds: ``before`` and ``after`` with ``rank1``, ``mean_ap`` and ``mean_inp`` in 0..1 on
        identities that were not trained on, and ``seconds`` for everything.

    Raises:
        FileExistsError: ``out`` is not an empty or a new folder.
    """
    start = time.perf_counter()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out: expected a new or an empty folder, got {out}")
    config = load_config("demo", [f"data={json.dumps(str(out / 'data'))}", f"seed={seed}", *overrides])
    synthetic.write("sysu", out / "data", seed=seed, **PEOPLE)
    trainer = Trainer(config, out / "run")
    before, after = trainer.evaluate(), trainer.fit()
    write(_page(trainer, before, after, time.perf_counter() - start), out / "report.html")
    result = {
        "before": before.scores.scalars(),
        "after": after.scores.scalars(),
        "seconds": time.perf_counter() - start,
    }
    write_text(out / "metrics.json", json.dumps(result, indent=2) + "\n")
    return result


def _page(trainer: Trainer, before: Evaluation, after: Evaluation, seconds: float) -> Page:
    config, dataset = trainer.config, trainer.dataset
    steps = [record for record in read_metrics(trainer.out) if record["kind"] == "train"]
    loss = figures.Line([record["step"] for record in steps], [record["loss"] for record in steps])
    cmc = figures.cmc_curves(
        figures.cmc_line(before.scores.cmc, None, "before"), figures.cmc_line(after.scores.cmc, 0, "after")
    )
    found = versions()
    facts = {
        "system": f"{config.system}, {sum(p.numel() for p in trainer.system.parameters()):,} parameters",
        "trained on": f"{len(dataset.train):,} images of {dataset.num_labels} people",
        "tested on": f"{len(dataset.query)} infrared queries against {len(dataset.trials)} galleries of "
        f"{len(dataset.trials[0])} visible images, {len(np.unique(dataset.query.labels))} other people",
        "training": f"{config.epochs} epochs, {len(steps)} steps, seed {config.seed}",
        "time": f"{seconds:.0f} s with the dataset and both evaluations",
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
                    ("Training loss", figures.training_curves("loss", [loss], "training step", "loss")),
                    ("Cumulative matches", cmc),
                    ("Distances before", _distances(before, dataset, "before")),
                    ("Distances after", _distances(after, dataset, "after")),
                ],
            ),
            rankings([ranked.pictures(dataset.root) for ranked in rank_queries(after, dataset)]),
            Facts(title="The run", facts=facts, details={"Resolved configuration": dump_config(config)}),
        ],
    )


def _distances(evaluation: Evaluation, dataset: Dataset, name: str) -> str:
    distances = 1 - (evaluation.query @ evaluation.gallery.T).numpy()  # cosine, of features that have unit length
    same = dataset.query.labels[:, None] == dataset.gallery.labels
    return figures.distance_histogram(distances[same], distances[~same], name)
