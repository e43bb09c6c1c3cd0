"""What a run will take, before it is started: parameters, steps, operations and memory."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vifast.data import Dataset
from vifast.nn import Frozen
from vifast.systems import Batch, System
from vifast.systems.stage import KNOWLEDGE, WEIGHTS
from vifast.train.build import build_system
from vifast.train.config import TrainConfig
from vifast.train.datasets import epoch_steps, open_dataset, train_sampler, weak_view
from vifast.train.optimizer import STATE_SIZE
from vifast.train.teacher import untrained_teacher

PROBE = 4  # images of the batch that is measured: two identities, both modalities
_LOW = {"no": None, "fp16": torch.bfloat16, "bf16": torch.bfloat16}  # fp16 saves as many bytes as bf16

_aten = torch.ops.aten
#: Operations of attention as the CPU has it, which PyTorch does not count.
ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@dataclass(frozen=True)
class Plan:
    """Counts of a whole run; bytes in total, or of one image where the name says so."""

    parameters: int
    trained: int
    num_classes: int
    images: int
    steps_per_epoch: int
    epochs: int
    batch: int
    accumulate: int
    flops_per_image: int
    state_bytes: int
    saved_bytes_per_image: int
    teacher_bytes: int
    taught_bytes_per_image: int

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def flops(self) -> float:
        return float(self.flops_per_image) * self.batch * self.accumulate * self.steps

    @property
    def memory(self) -> int:
        """Bytes of weights, gradients, optimiser, what one batch's backward needs, and a teacher; workspaces come on
        top. A teacher has answered before the student's forward begins, so that theirs are not there at once."""
        batch = self.batch * max(self.saved_bytes_per_image, self.taught_bytes_per_image)
        return self.state_bytes + self.teacher_bytes + batch

    def rows(self) -> list[tuple[str, str]]:
        """Names and values to show."""
        giga = 2**30
        saved, taught = (self.batch * size / giga for size in (self.saved_bytes_per_image, self.taught_bytes_per_image))
        rows = [
            ("identities", f"{self.num_classes:,}"),
            ("images", f"{self.images:,}"),
            ("parameters", f"{self.parameters:,}, of which {self.trained:,} are trained"),
            ("batch", f"{self.batch} images"),
            ("steps", f"{self.steps:,} = {self.epochs} epochs of {self.steps_per_epoch:,}"),
            ("operations", f"{self.flops_per_image / 1e9:.1f} GFLOP an image, {self.flops / 1e15:,.2f} PFLOP in all"),
            (
                "memory",
                f"{self.memory / giga:.1f} GiB: {self.state_bytes / giga:.2f} for weights, gradients and optimiser, "
                f"{saved:.1f} for the backward of a batch",
            ),
        ]
        if self.teacher_bytes:
            held = f"{self.teacher_bytes / giga:.2f} GiB of it for weights"
            rows.append(("teacher", f"{held}; its forward holds {taught:.1f} before the student's begins"))
        return rows


def plan_run(
    config: TrainConfig, dataset: Dataset | None = None, knowledge: Mapping[str, Tensor] | None = None
) -> Plan:
    """The plan of a configured run on its dataset, or another; with ``knowledge`` that of a stage after one that left
    it, and weights like its own.

    Raises:
        ConfigError, FileNotFoundError, ValueError: from the dataset or the system.
    """
    dataset = open_dataset(config) if dataset is None else dataset
    return make_plan(
        config,
        num_classes=dataset.num_labels,
        images=len(dataset.train),
        steps_per_epoch=epoch_steps(train_sampler(dataset, config), config),
        knowledge=knowledge,
    )


def make_plan(
    config: TrainConfig,
    *,
    num_classes: int,
    images: int,
    steps_per_epoch: int,
    knowledge: Mapping[str, Tensor] | None = None,
) -> Plan:
    """The plan of a run. A step of `PROBE` images is taken on the CPU: products and convolutions are counted, and the
    bytes that its backward and a teacher's forward hold; all grow with the images of a batch."""
    system = _probe_system(config, num_classes)
    if system.needs_teacher:
        system.learn_from(untrained_teacher(config, num_classes))
    if knowledge is not None:
        system.continue_from({WEIGHTS: system.state_dict(), KNOWLEDGE: knowledge}.__getitem__, "a stage like it")
    trained = sum(p.numel() for p in system.parameters() if p.requires_grad)
    state = _bytes(system) + 4 * trained * (1 + STATE_SIZE[config.optimizer.name])
    batch = 2 * config.dataset.num_ids * config.dataset.num_instances
    teachers = [part.module for part in system.modules() if isinstance(part, Frozen)]
    probe = _probe_batch(config, system.auxiliary)
    flops, saved, taught = _measured(system, teachers, probe, _LOW[config.precision])
    return Plan(
        parameters=sum(p.numel() for p in system.parameters()),
        trained=trained,
        num_classes=num_classes,
        images=images,
        steps_per_epoch=steps_per_epoch,
        epochs=config.epochs,
        batch=batch,
        accumulate=config.accumulate,
        flops_per_image=flops // PROBE,
        state_bytes=state,
        saved_bytes_per_image=saved // PROBE,
        teacher_bytes=sum(map(_bytes, teachers)),  # after the step, which may have cast them
        taught_bytes_per_image=taught // PROBE,
    )


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _probe_system(config: TrainConfig, num_classes: int) -> System:
    dataset, options = config.dataset.model_copy(update={"num_instances": PROBE // 4}), config.options
    if hasattr(options, "num_instances"):  # the probe's, too
        options = dataclasses.replace(options, num_instances=None)
    return build_system(config.model_copy(update={"dataset": dataset, "options": options}), num_classes).train()


def _probe_batch(config: TrainConfig, auxiliary: bool) -> Batch:
    rows = torch.arange(PROBE)
    image = torch.randn(PROBE, 3, config.dataset.height, config.dataset.width)
    batch = {"image": image, "label": rows // 2, "modality": 1 - rows % 2}
    views = {"auxiliary": image[1::2]} if auxiliary else {}
    return batch | views | ({"weak": image} if weak_view(config) else {})


class _Peak(TorchDispatchMode):
    """The most bytes that tensors which are made in it hold at a time, those of some shapes left out."""

    def __init__(self, left_out: set[torch.Size]):
        super().__init__()
        self.left_out, self.held, self.most = left_out, 0, 0

    def __torch_dispatch__(self, func: Callable, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.shape not in self.left_out:
                storage = x.untyped_storage()
                if storage._cdata not in known:  # else a view of an argument, or the argument
                    known.add(storage._cdata)
                    self._hold(storage.nbytes())
                    weakref.finalize(storage, self._hold, -storage.nbytes())
        return out

    def _hold(self, size: int) -> None:
        self.held += size
        self.most = max(self.most, self.held)


def _measured(system: System, teachers: list[nn.Module], batch: Batch, low: torch.dtype | None) -> tuple[int, int, int]:
    """Operations of a step, bytes that its backward holds besides the weights, and bytes that a teacher's forward does
    where it holds most."""
    weights = {shape for part in (system, *teachers) for p in part.parameters() for shape in (p.shape, p.shape[::-1])}
    held: dict[int, int] = {}
    taught = _Peak(weights)
    system.watch = lambda part: taught if part == "teacher" else nullcontext()

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weights:  # nor copies of them in low precision, which do not grow with the batch
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with counter:
        # What is saved stays alive until the backward, so no two of its tensors share an address.
        with (
            torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor),
            torch.autocast("cpu", dtype=low or torch.bfloat16, enabled=low is not None),
        ):
            loss = system(batch)["loss"]
        loss.backward()
    return counter.get_total_flops(), sum(held.values()), taught.most
