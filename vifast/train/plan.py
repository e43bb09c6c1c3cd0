"""What a run will take, before it is started: parameters, steps, operations and memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vifast.data import Dataset
from vifast.systems import Batch, System
from vifast.train.build import build_system
from vifast.train.config import TrainConfig
from vifast.train.datasets import epoch_steps, open_dataset, train_loader, weak_view
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

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def flops(self) -> float:
        return float(self.flops_per_image) * self.batch * self.accumulate * self.steps

    @property
    def memory(self) -> int:
        """Bytes of weights, gradients, optimiser and what one batch's backward needs; workspaces come on top."""
        return self.state_bytes + self.saved_bytes_per_image * self.batch

    def rows(self) -> list[tuple[str, str]]:
        """Names and values to show."""
        giga = 2**30
        return [
            ("identities", f"{self.num_classes:,}"),
            ("images", f"{self.images:,}"),
            ("parameters", f"{self.parameters:,}, of which {self.trained:,} are trained"),
            ("batch", f"{self.batch} images"),
            ("steps", f"{self.steps:,} = {self.epochs} epochs of {self.steps_per_epoch:,}"),
            ("operations", f"{self.flops_per_image / 1e9:.1f} GFLOP an image, {self.flops / 1e15:,.2f} PFLOP in all"),
            (
                "memory",
                f"{self.memory / giga:.1f} GiB: {self.state_bytes / giga:.2f} for weights, gradients and optimiser, "
                f"{self.saved_bytes_per_image * self.batch / giga:.1f} for the backward of a batch",
            ),
        ]


def plan_run(config: TrainConfig, dataset: Dataset | None = None) -> Plan:
    """The plan of a configured run on its dataset, or another.

    Raises:
        ConfigError, FileNotFoundError, ValueError: from the dataset or the system.
    """
    dataset = open_dataset(config) if dataset is None else dataset
    return make_plan(
        config,
        num_classes=dataset.num_labels,
        images=len(dataset.train),
        steps_per_epoch=epoch_steps(train_loader(dataset, config), config),
    )


def make_plan(config: TrainConfig, *, num_classes: int, images: int, steps_per_epoch: int) -> Plan:
    """The plan of a run. A step of `PROBE` images is taken on the CPU: products and convolutions are counted, and the
    bytes that its backward holds; both grow with the images of a batch."""
    system = _probe_system(config, num_classes)
    if system.needs_teacher:
        system.learn_from(untrained_teacher(config, num_classes))
    counts = [p.numel() for p in system.parameters()]
    trained = sum(p.numel() for p in system.parameters() if p.requires_grad)
    state = 4 * (sum(counts) + trained * (1 + STATE_SIZE[config.optimizer.name]))
    batch = 2 * config.dataset.num_ids * config.dataset.num_instances
    flops, saved = _measured(system, _probe_batch(config, system.auxiliary), _LOW[config.precision])
    return Plan(
        parameters=sum(counts),
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
    )


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


def _measured(system: nn.Module, batch: Batch, low: torch.dtype | None) -> tuple[int, int]:
    """Operations of a step, and bytes that its backward holds besides the weights."""
    weights = {shape for p in system.parameters() for shape in (p.shape, p.shape[::-1])}
    held: dict[int, int] = {}

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
    return counter.get_total_flops(), sum(held.values())
