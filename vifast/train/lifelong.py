"""A lifelong run: one stage after another, each an ordinary run that goes on from the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from vifast._files import write_text
from vifast.data import Dataset
from vifast.data.layouts import recognise
from vifast.data.records import joined
from vifast.models import read_tensors
from vifast.train import checkpoint
from vifast.train.build import build_system, load_run, prepare_torch
from vifast.train.config import ConfigError, TrainConfig, read_config
from vifast.train.datasets import open_dataset
from vifast.train.evaluate import Extraction, evaluate_system, extract_run, extract_system
from vifast.train.lifelong_config import (
    LifelongConfig,
    build_lifelong,
    dump_lifelong,
    is_lifelong,
    stage_folders,
)
from vifast.train.loop import RunError, Trainer, claim_folder, claim_sources
from vifast.train.matrix import FILE, FIRST, KEYS, Matrix
from vifast.train.plan import Plan, plan_run
from vifast.train.record import CONFIG, finished, read_results
from vifast.train.rehearsal import rehearse


@dataclass(frozen=True)
class Stage:
    """One run of a lifelong run."""

    number: int
    names: list[str]
    config: TrainConfig
    folder: Path
    dataset: Dataset

    @property
    def begun(self) -> bool:
        return (self.folder / CONFIG).exists()

    @property
    def finished(self) -> bool:
        return finished(self.folder)


class Lifelong:
    """A lifelong run in a folder: ``config.yaml``, ``1-regdb/``, ``2-sysu/`` .. with a run each, and ``matrix.json``
    with the scores of every stage's model on all datasets seen by then.

    Whatever can be wrong with a dataset, a configuration or an earlier stage is found before anything is trained. A run
    that ended may be resumed with a longer order.

    Args:
        config: resolved configuration.
        out: the folder.
        resume: continue the run in ``out`` from where it was cut short.
        quiet: no progress bar.
        told: called with a line before each stage and after its evaluation.

    Raises:
        RunError: ``out`` holds a run and ``resume`` is not asked for, or it is another one.
        ConfigError, FileNotFoundError, ValueError: from a dataset, or an earlier stage.
    """

    def __init__(
        self,
        config: LifelongConfig,
        out: Path,
        *,
        resume: bool = False,
        quiet: bool = False,
        told: Callable[[str], None] = lambda line: None,
    ):
        self.config, self.out, self.quiet = config, Path(out), quiet
        self.told = told if _processes().is_main_process else lambda line: None
        self._claim_folder(resume)
        self.datasets = open_datasets(config)
        self.stages = stages_of(config, self.out, self.datasets)
        for stage in self.stages:
            self._check(stage)
        rehearse(self.stages)
        self.matrix = self._read_matrix()
        _processes().wait_for_everyone()  # all have read what one of them is going to change

    def fit(self) -> Matrix:
        """Trains and scores what is not yet; every stage's scores are kept as soon as they are known.

        Raises:
            Stopped, RunError: as `Trainer.fit`.
        """
        if _processes().is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(self.out / CONFIG, dump_lifelong(self.config))
        for stage in self.stages:
            if not stage.finished:
                self.told(f"stage {stage.number + 1} of {len(self.stages)}: {', '.join(stage.names)}")
                options = {"dataset": stage.dataset, "name": stage.folder.name, "quiet": self.quiet}
                Trainer(stage.config, stage.folder, resume=True, **options).fit()
            self._score(stage)
        return self.matrix

    def _score(self, stage: Stage) -> None:
        """Scores a stage's weights on every dataset seen. Its own was scored at the end of its run."""
        missing = self.matrix.missing(stage.number)
        if missing and missing != [stage.names[-1]]:
            prepare_torch(stage.config)
            system = load_run(stage.folder)[0].to(_processes().device)
        for name in missing:
            if name == stage.names[-1]:
                found = read_results(stage.folder)
            else:
                found = evaluate_system(system, self.datasets[name], self.config.run(name)).scores.to_dict()
            scores = _scores(found)
            self.matrix.put(stage.number, name, scores)
            if _processes().is_main_process:
                self.matrix.save(self.out)
            self.told(f"{name}: mAP {100 * scores['mean_ap']:.1f} %, Rank-1 {100 * scores['rank1']:.1f} %")

    def _claim_folder(self, resume: bool) -> None:
        path = self.out / CONFIG
        if not resume and any(p.exists() for p in (path, *stage_folders(self.out, self.config.order))):
            raise RunError(f"{self.out}: already holds a run; add --resume or choose another folder")
        if not path.exists():
            return
        before = read_config(path)
        if not is_lifelong(before):
            raise RunError(f"{self.out}: holds a run of one stage")
        order = build_lifelong(before).order
        if order != self.config.order[: len(order)]:
            now = ", ".join(self.config.order)
            raise RunError(
                f"{path}: the run to resume has the order {', '.join(order)}, which {now} does not go on from"
            )

    def _check(self, stage: Stage) -> None:
        """What a stage starts from, and what earlier calls left of it, can be read and fits what is asked for."""
        folder = stage.folder
        before = self.stages[stage.number - 1] if stage.number else None
        ready = before is None or before.finished
        newest = None if stage.finished else checkpoint.latest(folder)
        if ready and not stage.finished:
            build_system(stage.config, stage.dataset.num_labels, resumed=newest is not None)
        if not stage.begun:
            return
        if not ready:
            raise RunError(f"{folder}: goes on from {before.folder}, which is not finished")
        claim_folder(folder, stage.config, resume=True)
        claim_sources(folder, stage.config, stage.dataset)
        for file in (folder / checkpoint.FINAL).glob("*") if stage.finished else ():
            read_tensors(file)
        if newest is not None:
            read_tensors(newest / checkpoint.WEIGHTS)
            checkpoint.load_state(newest)

    def _read_matrix(self) -> Matrix:
        order = tuple(tuple(stage.names) for stage in self.stages)
        rows = Matrix.load(self.out).rows if (self.out / FILE).exists() else []
        return Matrix(order, rows[: sum(stage.finished for stage in self.stages)])


def open_datasets(config: LifelongConfig) -> dict[str, Dataset]:
    """The datasets of all stages, in their order.

    Raises:
        ConfigError: no folder is given for one or several, which are all named.
        FileNotFoundError, ValueError: from a reader.
    """
    names = [name for number in range(len(config.order)) for name in config.names(number)]
    problems = []
    for name in names:
        try:
            config.root(name)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return {name: open_dataset(config.run(name)) for name in names}


def stages_of(config: LifelongConfig, out: Path, datasets: dict[str, Dataset]) -> list[Stage]:
    """The stages of a run in the folder ``out``."""
    folders = stage_folders(out, config.order)
    previous = [None, *folders]
    return [
        Stage(
            n, config.names(n), config.stage(n, previous[n]), folders[n], joint([datasets[x] for x in config.names(n)])
        )
        for n in range(len(folders))
    ]


def joint(parts: Sequence[Dataset]) -> Dataset:
    """The training images of several datasets under labels that do not meet; all else is the last one's."""
    if len(parts) == 1:
        return parts[0]
    samples, shift = [], 0
    for part in parts:
        train = part.train.select(part.train.labels < part.num_labels)
        samples.append(replace(train, labels=train.labels + shift, tracklets=None))
        shift += part.num_labels
    return replace(
        parts[-1], train=reduce(joined, samples), identities=np.concatenate([part.identities for part in parts])
    )


def plan_stages(config: LifelongConfig) -> list[tuple[str, Plan]]:
    """What every stage of a run would take, those after the first with a teacher.

    Raises:
        ConfigError, FileNotFoundError, ValueError: as `Lifelong`.
    """
    stages = stages_of(config, Path(), open_datasets(config))
    return [
        (
            f"stage {stage.number + 1}: {', '.join(stage.names)}",
            plan_run(config.run(stage.names[-1]), stage.dataset, knowledge),
        )
        for stage, knowledge in zip(stages, rehearse(stages), strict=True)
    ]


def extract_any(out: Path, data: Path, *, which: str = "last") -> Extraction:
    """Features of the test identities of the dataset at ``data``, by a run, see `extract_run`, or by the last finished
    stage of a lifelong one.

    Raises:
        FileNotFoundError: no run, or no stage of it is finished.
        ConfigError, ValueError: it knows no such dataset, or its files cannot be used.
    """
    given = read_config(out / CONFIG) if (out / CONFIG).is_file() else {}
    if not is_lifelong(given):
        return extract_run(out, data, which=which)
    config = build_lifelong(given)
    trained = [folder for folder in stage_folders(out, config.order) if finished(folder)]
    if not trained:
        raise FileNotFoundError(f"{out}: no stage is finished yet")
    name = recognise(data)
    if name not in config.datasets:
        raise ConfigError(f"data: expected a dataset of {', '.join(config.datasets)}, got {name} at {data}")
    run = config.datasets[name].model_copy(update={"data": data})
    system = load_run(trained[-1], which)[0].to(_processes().device)
    return extract_system(system, open_dataset(run), run)


def _processes() -> PartialState:
    """Those of this run, who meet here before any `Trainer` asks for them, and so where Accelerate would have them."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def _scores(found: Mapping[str, Any]) -> dict[str, Any]:
    """What of a `ProtocolResult`, as ``results.json`` has it, goes into the matrix."""
    return {key: found[key] for key in KEYS} | {FIRST: {key: found["trials"][0][key] for key in KEYS}}
