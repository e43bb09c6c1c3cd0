"""The one training loop. It knows a system only as `vifast.systems.System`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from vifast import systems
from vifast._files import write_text
from vifast.data import Dataset
from vifast.systems import System
from vifast.train import checkpoint
from vifast.train.config import ConfigError, OptimizerConfig, TrainConfig, dump_config, load_config
from vifast.train.datasets import open_dataset, train_loader
from vifast.train.evaluate import Evaluation, evaluate_system
from vifast.train.log import RunLog
from vifast.train.provenance import git_commit, versions
from vifast.train.schedule import lr_factor


class RunError(ValueError):
    """A run that cannot start or go on; the message says why and what to do."""


class Trainer:
    """A run in a folder: ``config.yaml``, ``run.json`` (what it depends on besides), ``metrics.jsonl``,
    ``tensorboard/``, ``checkpoints/`` after every epoch, and ``results.json`` at the end.

    Every epoch starts from seeds that depend on ``(config.seed, epoch)`` alone, so a resumed run needs no
    generator state to continue exactly where it left off.

    Args:
        config: resolved configuration.
        out: the run's folder.
        resume: continue the run in ``out`` from its newest checkpoint (from the start if it has none).
        quiet: no progress bar.

    Raises:
        RunError: ``out`` holds a run and ``resume`` is not asked for, or its configuration is another.
        ConfigError, FileNotFoundError, ValueError: from the dataset, the system or the checkpoint.
    """

    def __init__(self, config: TrainConfig, out: Path, *, resume: bool = False, quiet: bool = False):
        self.config, self.out, self.quiet = config, Path(out), quiet
        self.epoch = self.step = 0  # finished epochs, and the steps in them
        self._claim_folder(resume)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.accelerator = Accelerator(mixed_precision=config.precision)
        self.dataset: Dataset = open_dataset(config)
        set_seed(config.seed)
        system = systems.get(config.system).build(config.options, num_classes=self.dataset.num_labels)
        if config.channels_last:
            system = system.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(system, config.optimizer)
        # Not prepared: the sampler gives every process its part of the batch, which Accelerate would divide again.
        ranks = {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}
        self.loader = train_loader(self.dataset, config, **ranks, device=self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(system, optimizer)
        if resume and (folder := checkpoint.latest(self.out)) is not None:
            self._restore(folder)

    @property
    def system(self) -> System:
        return self.accelerator.unwrap_model(self.model)

    def evaluate(self) -> Evaluation:
        """Features and scores of the test identities with the current weights."""
        return evaluate_system(self.system, self.dataset, self.config)

    def fit(self) -> Evaluation:
        """Trains to the last epoch, evaluates, and writes ``results.json``."""
        config = self.config
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(self.out / "config.yaml", dump_config(config))
            run = {
                "num_classes": self.dataset.num_labels,
                "seed": config.seed,
                "commit": git_commit(),
                "versions": versions(),
            }
            write_text(self.out / "run.json", json.dumps(run, indent=2) + "\n")
        out = self.out if self.accelerator.is_main_process else None
        with RunLog(out, total=self._steps(range(config.epochs)), step=self.step, quiet=self.quiet) as log:
            for epoch in range(self.epoch, config.epochs):
                self._train_epoch(epoch, log)
                self.epoch = epoch + 1
                self._save()
                due = config.evaluate_every and self.epoch % config.evaluate_every == 0
                if due and self.epoch < config.epochs:
                    log.evaluation(self.step, self.evaluate().scores.scalars(), epoch=self.epoch)
            evaluation = self.evaluate()
            log.evaluation(self.step, evaluation.scores.scalars(), epoch=config.epochs)
        if self.accelerator.is_main_process:
            write_text(self.out / "results.json", evaluation.scores.to_json())
        return evaluation

    def _train_epoch(self, epoch: int, log: RunLog) -> None:
        config = self.config
        set_seed(config.seed + 100_003 * (epoch + 1), device_specific=True)
        self.loader.batch_sampler.set_epoch(epoch)
        steps = len(self.loader)
        self.model.train()
        self.system.start_epoch(epoch)
        for step, batch in enumerate(self.loader, start=epoch * steps):
            factor = lr_factor(config.schedule, step=step, steps_per_epoch=steps, epochs=config.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            parts = self._train_step(batch)
            scalars = dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))
            if not math.isfinite(scalars["loss"]):
                raise RunError(f"step {self.step + 1}: the loss is {scalars['loss']}; try a lower optimizer.lr")
            self.step += 1
            images = len(batch["image"]) * self.accelerator.num_processes
            log.train(self.step, {**scalars, "lr_factor": factor}, images=images, epoch=epoch)

    def _train_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.optimizer.zero_grad()
        parts = self.model(batch)
        self.accelerator.backward(parts["loss"])
        if self.config.optimizer.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        return {name: value.detach().float() for name, value in parts.items()}

    def _claim_folder(self, resume: bool) -> None:
        path = self.out / "config.yaml"
        if not path.exists():
            return
        if not resume:
            raise RunError(f"{self.out}: already holds a run; add --resume or choose another folder")
        before, now = (_flatten(json.loads(c.model_dump_json())) for c in (load_config(path), self.config))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise RunError(f"{path}: the run to resume has another {', '.join(changed)}")

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state: dict[str, Any] = {"epoch": self.epoch, "optimizer": self.optimizer.state_dict()}
            state["scaler"] = scaler.state_dict() if scaler is not None else None
            checkpoint.save(self.out, self.epoch, self.system, state)
        self.accelerator.wait_for_everyone()

    def _restore(self, folder: Path) -> None:
        state = checkpoint.load_state(folder)
        checkpoint.load_weights(folder / checkpoint.WEIGHTS, self.system)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch = state["epoch"]
        self.step = self._steps(range(self.epoch))

    def _steps(self, epochs: range) -> int:
        """Optimiser steps of these epochs, of which a sampler may have more in one than in another."""
        steps = 0
        for epoch in epochs:
            self.loader.batch_sampler.set_epoch(epoch)
            steps += len(self.loader)
        return steps


def build_optimizer(system: System, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser over the system's parameter groups, each with its ``base_lr``.

    Raises:
        ConfigError: ``lr_scale`` names a group that the system does not have.
    """
    groups = system.parameter_groups()
    unknown = sorted(config.lr_scale.keys() - groups.keys())
    if unknown:
        raise ConfigError(f"optimizer.lr_scale: expected among {', '.join(groups)}, got {unknown[0]!r}")
    rated = [
        {"params": parameters, "base_lr": config.lr * config.lr_scale.get(name, 1.0)}
        for name, parameters in groups.items()
    ]
    common = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "sgd":
        return torch.optim.SGD(rated, momentum=config.momentum, nesterov=config.momentum > 0, **common)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name](rated, **common)


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in data.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
