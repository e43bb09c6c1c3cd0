"""Learning without forgetting on CKDA's network: a baseline that holds on to what the old classifiers say."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from vifast import _checks
from vifast.kernels.linear import linear
from vifast.nn import Frozen
from vifast.systems.base import Batch, TrainingImages
from vifast.systems.ckda import CKDA, CKDAOptions
from vifast.systems.ckda.system import halves
from vifast.systems.stage import FINAL, KNOWLEDGE, read_final


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

    def __init__(self, options: LwFOptions, *, num_classes: int):
        super().__init__(options, num_classes=num_classes)
        self.heads: list[str] = []  # names of the old classifiers' buffers, by stage
        if options.previous is not None:
            self.teacher = Frozen(copy.deepcopy(self.network))
            for name, weight in _read_heads(options.previous, self.classifier.in_features).items():
                self.register_buffer(name, weight, persistent=False)
                self.heads.append(name)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images, modality = batch["image"], batch["modality"]
        with self.watch("forward"):
            feat, _ = self.network(images, modality)
            with torch.no_grad():
                old = None if self.teacher is None else self.teacher.module
                taught = [] if old is None else [old.neck(old(images, modality)[0])]
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

    def _distilled(self, new: Tensor, old: Tensor, head: Tensor) -> Tensor:
        temperature = self.options.temperature
        student, teacher = ((linear(rows, head) / temperature).log_softmax(1) for rows in (new, old))
        return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)


def _read_heads(previous: str, width: int) -> dict[str, Tensor]:
    found = read_final(previous, KNOWLEDGE)
    names = [f"head{number}" for number in range(len(found))]
    if not names or found.keys() != set(names) or any(w.dim() != 2 or w.size(1) != width for w in found.values()):
        shapes = {name: list(weight.shape) for name, weight in found.items()}
        raise ValueError(
            f"previous: {Path(previous) / FINAL / KNOWLEDGE}: expected head0 .. [C, {width}], got {shapes}"
        )
    return {name: found[name] for name in names}
