"""Learning without forgetting on CKDA's network: a baseline that holds on to what the old classifiers say."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from vifast import _checks
from vifast.kernels.linear import linear
from vifast.nn import Frozen
from vifast.systems.base import Batch, TrainingImages
from vifast.systems.ckda import CKDA, CKDAOptions
from vifast.systems.ckda.system import halves
from vifast.systems.stage import KNOWLEDGE, Left


@dataclass(frozen=True, kw_only=True)
class LwFOptions(CKDAOptions):
    """CKDA's, of which the base loss counts, with ``temperature`` and weight of the distillation, ``distill``."""

    terms: tuple[str, ...] = ("ce", "triplet", "center")
    merge: str = "off"
    temperature: float = 2.0
    distill: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _checks.positive("temperature", self.temperature)
        _checks.non_negative("distill", self.distill)


class LwF(CKDA):
    """Base loss of CKDA + sum over earlier stages of T^2 KL(old model || new model), both by that stage's classifier.

    The old model is that of the stage before; the classifiers of all stages stay as they were. ``distill`` of the parts
    is the sum, a mean over rows.

    Source: Li and Hoiem 2016, "Learning without Forgetting", with their T = 2 and weight 1. There the old classifiers
    are trained on as well; the factor T^2 is that of Hinton et al. 2015.

    >>> lwf = LwF.build(LwFOptions(backbone="vit_tiny_demo", image_size=(64, 32)), num_classes=5).eval()
    >>> lwf.embed({"image": torch.zeros(2, 3, 64, 32), "modality": torch.tensor([0, 1])}).shape
    torch.Size([2, 64])
    """

    Options = LwFOptions
    heads: tuple[str, ...] = ()  # names of the old classifiers' buffers, by stage

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images, modality = batch["image"], batch["modality"]
        taught = [] if self.teacher is None else [self._old_neck(images, modality)]
        with self.watch("forward"):
            feat, _ = self.network(images, modality)
        with self.watch("losses"), torch.autocast(feat.device.type, enabled=False):
            feat, modality, labels, *old = self.mined(feat, modality, batch["label"], *taught)
            order = modality.argsort(stable=True)
            feat, labels = feat[order], labels[order[: len(order) // 2]]
            neck = self.network.neck(feat)
            given = halves("feat", feat) | halves("logits", linear(neck, self.classifier.weight))
            parts = self.losses(labels=labels, **given)
            kept = [self._distilled(neck, old[0][order].float(), getattr(self, name)) for name in self.heads]
            distill = torch.stack(kept).sum() if kept else feat.new_zeros(())
            return {**parts, "loss": parts["loss"] + self.options.distill * distill, "distill": distill}

    def finish(self, images: TrainingImages) -> dict[str, Tensor]:
        """Merges if asked to, and leaves the classifiers of all stages, ``head0`` that of the first."""
        if self.options.previous is not None and self.options.merge != "off":
            self._merge(images)
        old = {name: getattr(self, name) for name in self.heads}
        return old | {f"head{len(old)}": self.classifier.weight}

    def _remember(self, left: Left, path: str) -> None:
        self.teacher = Frozen(copy.deepcopy(self.network))
        heads = _checked(left(KNOWLEDGE), self.classifier.in_features, path)
        self.heads = tuple(f"head{number}" for number in range(len(heads)))
        for name in self.heads:
            self.register_buffer(name, heads[name], persistent=False)

    def _old_neck(self, images: Tensor, modality: Tensor) -> Tensor:
        """The teacher's features after the neck."""
        teacher = self._cast_teacher(images.device.type)
        with self.watch("teacher"), torch.no_grad():
            return teacher.neck(teacher(images, modality)[0])

    def _distilled(self, new: Tensor, old: Tensor, head: Tensor) -> Tensor:
        temperature = self.options.temperature
        student, teacher = ((linear(rows, head) / temperature).log_softmax(1) for rows in (new, old))
        return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)


def _checked(found: Mapping[str, Tensor], width: int, place: str) -> Mapping[str, Tensor]:
    names = {f"head{number}" for number in range(len(found))}
    if not names or found.keys() != names or any(w.dim() != 2 or w.size(1) != width for w in found.values()):
        shapes = {name: list(weight.shape) for name, weight in found.items()}
        raise ValueError(f"{place}: expected head0 .. [C, {width}], got {shapes}")
    return found
