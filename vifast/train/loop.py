"""The one training loop. It knows a system only as `vifast.systems.System`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, set_seed
from torch import Tensor

from vifast._files import write_text
from vifast.data import Dataset
from vifast.systems import System
from vifast.train import checkpoint, teacher
from vifast.train.build import build_system, prepare_torch
from vifast.train.config import TrainConfig, dump_config, flatten, load_config
from vifast.train.datasets import epoch_steps, open_dataset, train_loader
from vifast.train.evaluate import Evaluation, TrainedImages, evaluate_system
from vifast.train.interrupt import StopAsked, stop_asked
from vifast.train.log import RunLog
from vifast.train.optimizer import STATE_SIZE, build_optimizer
from vifast.train.provenance import git_commit, versions
from vifast.train.ranked import rank_queries, save_ranked
from vifast.train.record import CONFIG, RESULTS, RUN, read_facts
from vifast.train.schedule import learning_rate, lr_factor
from vifast.train.sources import places, sources
from vifast.train.stopwatch import Stopwatch


class RunError(ValueError):
    """A run that cannot start or go on; the message says why and what to do."""


class Stopped(KeyboardInterrupt):
    """Somebody asked a run to stop, and it is saved; the message says where."""


class Trainer:
    """A run in a folder: ``config.yaml``, ``run.json`` (what it depends on besides), ``metrics.jsonl``,
    ``tensorboard/``, ``checkpoints/``, and ``results.json`` with ``ranked.json`` at the end; ``final/``, too, of a
    system that has a last word on its weights.

    Every step starts from a seed that depends on ``(config.seed, epoch, step)`` alone, and a sampler begins at any
    step, so a resumed run needs no generator state to continue exactly where it left off.

    Args:
        config: resolved configuration.
        out: the run's folder.
        resume: continue the run in ``out`` from its newest checkpoint (from the start if it has none).
        quiet: no progress bar.
        name: of the run, for the bar and messages.
        dataset: what to train and score on; by default the configuration's.

    Raises:
        RunError: ``out`` holds a run and ``resume`` is not asked for, or its configuration or what it was made from
            is another.
        ConfigError, FileNotFoundError, ValueError: from the dataset, the system or the checkpoint.
        OSError: ``out`` cannot be written to, or its disk has no room for the checkpoints.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        *,
        resume: bool = False,
        quiet: bool = False,
        name: str = "training",
        dataset: Dataset | None = None,
    ):
        self.config, self.out, self.quiet, self.name = config, Path(out), quiet, name
        self.epoch = self.done = self.step = 0  # finished epochs, steps since then, steps in all
        claim_folder(self.out, config, resume)
        prepare_torch(config)
        # A system may have parameters that some of its options leave without a gradient.
        wrapper = DistributedDataParallelKwargs(find_unused_parameters=True)
        # Without a card Accelerate takes every one of several processes for the only one, unless it is told.
        cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=config.precision, kwargs_handlers=[wrapper])
        self.dataset: Dataset = open_dataset(config) if dataset is None else dataset
        newest = checkpoint.latest(self.out) if resume else None
        set_seed(config.seed)
        system = build_system(config, self.dataset.num_labels, resumed=newest is not None)
        if teacher.needs_teacher(config):
            folder = config.teacher or self.out / teacher.FOLDER
            system.learn_from(teacher.open_teacher(config, folder, self.dataset.num_labels))
        self._sources = claim_sources(self.out, config, self.dataset)
        checkpoint.require_space(self.out, _checkpoint_bytes(system, config))
        if config.compile:
            for module in system.backbones():
                module.compile(dynamic=False)
        optimizer = build_optimizer(system, config.optimizer)
        # Not prepared: the sampler gives every process its part of the batch, which Accelerate would divide again.
        ranks = {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}
        self.loader = train_loader(self.dataset, config, **ranks, device=self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(system, optimizer)
        self._watch = Stopwatch(self.accelerator.device)
        system.watch = self._watch
        if newest is not None:
            self._restore(newest)

    @property
    def system(self) -> System:
        return self.accelerator.unwrap_model(self.model)

    def evaluate(self) -> Evaluation:
        """Features and scores of the test identities with the current weights; all processes call it together."""
        return evaluate_system(self.system, self.dataset, self.config)

    def fit(self) -> Evaluation:
        """Trains to the last epoch, evaluates, and writes ``results.json``.

        Raises:
            Stopped: Ctrl-C or SIGTERM came; the step under way was finished, and the run saved.
            RunError: the loss is not finite.
        """
        config = self.config
        if self.accelerator.is_main_process:
            self._describe()
        out = self.out if self.accelerator.is_main_process else None
        total = self._steps(range(config.epochs))
        with RunLog(out, total=total, step=self.step, quiet=self.quiet, name=self.name) as log, stop_asked() as stop:
            self._score_if_due(log)  # where the run was cut short between a checkpoint and its evaluation
            for epoch in range(self.epoch, config.epochs):
                self._train_epoch(epoch, log, stop)
                self.epoch, self.done = epoch + 1, 0
                self._save()
                self._score_if_due(log)
                self._stop_if(stop)
            self._finish()
            evaluation = self._score(log)
        if self.accelerator.is_main_process:
            save_ranked(self.out, rank_queries(evaluation, self.dataset))
            write_text(self.out / RESULTS, evaluation.scores.to_json())  # the last of all: the run is through
        self.accelerator.wait_for_everyone()  # a next stage looks for the results
        return evaluation

    def _train_epoch(self, epoch: int, log: RunLog, stop: StopAsked) -> None:
        config, first = self.config, self.done
        self.loader.batch_sampler.start_at(epoch, first * config.accumulate)
        steps = epoch_steps(self.loader, config)
        if first == 0:
            self.system.start_epoch(epoch, self._images())
        self.model.train()
        pending: tuple | None = None  # what the last step gave, read while the next one runs
        clock = time.perf_counter()
        for batches in self._groups():
            step = epoch * steps + self.done
            factor = lr_factor(config.schedule, step=step, steps_per_epoch=steps, epochs=config.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(group["base_lr"], factor, config.schedule.floor)
            torch.manual_seed(self._step_seed(epoch))
            details: dict[str, Tensor] = {}
            due = config.detail_every and self.step % config.detail_every == 0
            self.system.observe, self.system.step = details.update if due else None, self.step
            parts = self._train_step(batches)
            self.done, self.step = self.done + 1, self.step + 1
            self._record(pending, log)  # on a GPU this waits for the last step, so the clock below is the card's
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            images = sum(len(batch["image"]) for batch in batches) * self.accelerator.num_processes
            parts["lr_factor"] = torch.tensor(factor)
            pending = (self.step, epoch, parts, images / seconds, self._watch.shares(), details)
            if self.done < steps and (stop or (config.checkpoint_every and self.done % config.checkpoint_every == 0)):
                self._record(pending, log)
                pending = None
                self._save()
                self._stop_if(stop)
                clock = time.perf_counter()
        self._record(pending, log)

    def _images(self) -> TrainedImages:
        return TrainedImages(self.system, self.loader, self.dataset)

    def _finish(self) -> None:
        if not _finishes(self.system):
            return
        torch.manual_seed(self._step_seed(self.epoch))
        knowledge = self.system.finish(self._images())
        if self.accelerator.is_main_process:
            checkpoint.save_final(self.out, self.system, knowledge)
        self.accelerator.wait_for_everyone()

    def _groups(self) -> Iterator[list[dict[str, Tensor]]]:
        """The batches of a step, of which the last step of an epoch may have fewer."""
        batches = iter(self.loader)
        while True:
            with self._watch("data"):
                group = list(islice(batches, self.config.accumulate))
            if not group:
                return
            yield group

    def _train_step(self, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """An optimiser step; means of the loss and its parts over the batches."""
        total: dict[str, Tensor] = {}
        self.optimizer.zero_grad()
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                parts = self.model(batch)
                with self._watch("backward"):
                    self.accelerator.backward(parts["loss"] / len(batches))
            for name, value in parts.items():
                total[name] = total.get(name, 0.0) + value.detach().float() / len(batches)
        with self._watch("optimizer"):
            if self.config.optimizer.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
            self.optimizer.step()
            self.system.end_step()
        return total

    def _record(self, pending: tuple | None, log: RunLog) -> None:
        if pending is None:
            return
        step, epoch, parts, speed, shares, details = pending
        values = torch.stack([value.to(parts["loss"].device) for value in parts.values()]).tolist()
        scalars = dict(zip(parts, values, strict=True))
        if not math.isfinite(scalars["loss"]):
            raise RunError(f"step {step}: the loss is {scalars['loss']}; try a lower optimizer.lr")
        log.train(step, scalars, speed=speed, epoch=epoch, shares=shares)
        log.details(step, details, epoch=epoch)

    def _score_if_due(self, log: RunLog) -> None:
        every, total = self.config.evaluate_every, self.config.epochs
        due = every and self.epoch % every == 0 and 0 < self.epoch < total and self.done == 0
        if due and broadcast_object_list([not log.has_evaluation(self.step)])[0]:  # the first process knows
            self._score(log)

    def _score(self, log: RunLog) -> Evaluation:
        """Evaluates, records, and keeps the weights if they are the best so far."""
        evaluation = self.evaluate()
        scalars = evaluation.scores.scalars()
        log.evaluation(self.step, scalars, epoch=self.epoch)
        if self.accelerator.is_main_process:
            best, name = checkpoint.best_score(self.out), self.config.best_by
            if best is None or scalars[name] > best[name]:
                checkpoint.save_best(self.out, self.system, {"epoch": self.epoch, **scalars})
        self.accelerator.wait_for_everyone()
        return evaluation

    def _describe(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / CONFIG, dump_config(self.config))
        run = {
            "num_classes": self.dataset.num_labels,
            "sources": self._sources,
            "seed": self.config.seed,
            "commit": git_commit(),
            "versions": versions(),
        }
        write_text(self.out / RUN, json.dumps(run, indent=2) + "\n")

    def _stop_if(self, stop: StopAsked) -> None:
        if stop:
            raise Stopped(f"{self.name}: stopped after {self.epoch} epochs and {self.done} steps, and saved")

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state: dict[str, Any] = {"epoch": self.epoch, "done": self.done, "step": self.step}
            state["optimizer"] = self.optimizer.state_dict()
            state["scaler"] = scaler.state_dict() if scaler is not None else None
            checkpoint.save(self.out, self.epoch, self.system, state, step=self.done)
        self.accelerator.wait_for_everyone()

    def _restore(self, folder: Path) -> None:
        state = checkpoint.load_state(folder)
        checkpoint.load_weights(folder / checkpoint.WEIGHTS, self.system)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.done, self.step = state["epoch"], state["done"], state["step"]

    def _steps(self, epochs: range) -> int:
        """Optimiser steps of these epochs, of which a sampler may have more in one than in another."""
        steps = 0
        for epoch in epochs:
            self.loader.batch_sampler.set_epoch(epoch)
            steps += epoch_steps(self.loader, self.config)
        return steps

    def _step_seed(self, epoch: int) -> int:
        """One for every step; of processes that compute the same loss of all rows, the same."""
        rank = 0 if self.config.gather == "all" else self.accelerator.process_index
        key = 0
        for number in (self.config.seed, epoch, self.done, rank):
            key = (key * 1_000_003 + number + 1) % 2**63
        return key


def claim_folder(out: Path, config: TrainConfig, resume: bool) -> None:
    """Refuses a folder that holds a run, unless it is the one to resume, whatever the places of what it is made from.

    Raises:
        RunError: ``resume`` is not asked for, or the run in ``out`` has another configuration.
    """
    path = out / CONFIG
    if not path.exists():
        return
    if not resume:
        raise RunError(f"{out}: already holds a run; add --resume or choose another folder")
    before, now = (
        flatten(json.loads(c.model_dump_json())) | dict.fromkeys([*places(c), "dataset.cache_folder"], "somewhere")
        for c in (load_config(path), config)
    )
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise RunError(f"{path}: the run to resume has another {', '.join(changed)}")


def claim_sources(out: Path, config: TrainConfig, dataset: Dataset) -> dict[str, str]:
    """Sums of what the run in ``out`` is made from, see `sources`: those it began with, where it did.

    Raises:
        RunError: something else is now in its place.
    """
    before = read_facts(out).get("sources", {}) if (out / RUN).exists() else {}
    now, where = sources(config, dataset), {"data": dataset.root} | places(config)
    for key, value in now.items():
        if before.get(key, value) != value:
            raise RunError(f"{out}: {key}: {where[key]} is not what the run to resume was made from")
    return before | now


def _finishes(system: System) -> bool:
    """Whether it has a last word on its weights, which then are kept besides those of the last checkpoint."""
    return type(system).finish is not System.finish


def _checkpoint_bytes(system: System, config: TrainConfig) -> int:
    """Of the newest checkpoint, the one that is written while it is still there, the best and the final weights."""
    weights = sum(value.nbytes for value in system.state_dict().values())
    trained = sum(p.nbytes for p in system.parameters() if p.requires_grad)
    return (3 + _finishes(system)) * weights + 2 * trained * STATE_SIZE[config.optimizer.name]
