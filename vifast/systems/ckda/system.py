"""One stage of CKDA as a trainable system: what it takes from the stage before, a step, what it leaves to the next."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vifast.kernels.linear import linear
from vifast.losses import CKDALoss
from vifast.models import copy_tensors, load_vit
from vifast.nn import Frozen
from vifast.systems.base import Batch, System, TrainingImages
from vifast.systems.ckda import prototypes
from vifast.systems.ckda.merge import affinity_change, merge_
from vifast.systems.ckda.network import CKDANetwork
from vifast.systems.ckda.options import CKDAOptions
from vifast.systems.stage import FINAL, KNOWLEDGE, WEIGHTS, Left, read_final

_CLASSIFIER = "classifier.weight"


class CKDA(System):
    """Lifelong visible-infrared re-identification, one dataset a stage.

    A first stage minimises the base loss. A later one, with ``previous``, starts from the weights of the stage before,
    whose network is also its teacher: prompts are held to the teacher's, and the relations of a batch's features to
    the old identities' prototypes to what they are in the teacher. After the last epoch old and new weights are merged,
    and prototypes made of the training images.

    Batches have as many visible as infrared images, whose identities come in the same order. The feature of retrieval
    is that after the neck, of unit length. Teacher and prototypes are no part of the weights.

    Source: Cui, Zhou and Peng 2026, spec ckda.

    >>> options = CKDAOptions(backbone="vit_tiny_demo", image_size=(64, 32))
    >>> ckda = CKDA.build(options, num_classes=5).eval()
    >>> ckda.embed({"image": torch.zeros(2, 3, 64, 32), "modality": torch.tensor([0, 1])}).shape
    torch.Size([2, 64])
    """

    Options = CKDAOptions
    starts = ("weights", "previous")

    def __init__(self, options: CKDAOptions, *, num_classes: int):
        super().__init__()
        self.options = options
        self.network = CKDANetwork(options)
        self.classifier = nn.Linear(self.network.backbone.out_channels, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)
        self.losses = CKDALoss(
            preset=options.preset,
            alpha=options.alpha,
            beta=options.beta,
            mu=options.mu,
            tau=options.tau,
            kappa=options.kappa,
            margin=options.margin,
            omega=options.omega,
            nu=options.nu,
            symmetric=options.symmetric,
            terms=options.terms,
        )
        self.teacher: Frozen | None = None  # of a CKDANetwork
        self._teacher_dtype = torch.float32
        self._aligned = not {"intra", "inter"}.isdisjoint(options.terms)
        self._held = "prompt" in options.terms and self.network.prompts is not None
        for name in prototypes.NAMES:
            self.register_buffer(name, None, persistent=False)
        if options.previous is not None:
            self.continue_from(partial(read_final, options.previous), str(Path(options.previous) / FINAL))
        elif options.weights is not None:
            load_vit(self.network.backbone, options.weights)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images, modality = batch["image"], batch["modality"]
        old_feat, old_prompts = self._taught(images, modality)
        with self.watch("forward"):
            quiet = old_prompts is not None and not self.options.prompt_noise
            # Before the network sees the batch, which moves its statistics.
            quiet_prompts = self._quiet_prompts(images, modality) if quiet else None
            feat, prompts = self.network(images, modality)
        # Features are float32, and so is everything that is computed of them.
        with self.watch("losses"), torch.autocast(feat.device.type, enabled=False):
            feat, modality, labels, *old = self.mined(
                feat, modality, batch["label"], *([] if old_feat is None else [old_feat])
            )
            order = modality.argsort(stable=True)  # visible rows, then infrared
            feat, labels = feat[order], labels[order[: len(order) // 2]]
            neck = self.network.neck(feat)
            given = halves("feat", feat) | halves("logits", linear(neck, self.classifier.weight))
            if old:
                given |= halves("teacher", old[0][order]) | {name: getattr(self, name) for name in prototypes.NAMES}
                if self.options.cka_student_feature == "post_neck":
                    given |= halves("align", neck)
            if old_prompts is not None:
                given |= {"prompts": quiet_prompts if quiet else prompts, "teacher_prompts": old_prompts}
            return self.losses(labels=labels, **given)

    def embed(self, batch: Batch) -> Tensor:
        return self.network.unit(self.network(batch["image"], batch["modality"])[0])

    def finish(self, images: TrainingImages) -> dict[str, Tensor]:
        """Merges with the old weights, and makes the prototypes of the merged ones."""
        options = self.options
        if options.previous is not None and options.merge != "off":
            self._merge(images)
        knowledge = prototypes.of_images(images, self.embed, regdb_infrared=options.regdb_ir_proto)
        if options.proto_history == "all" and self.prototypes_v is not None:
            knowledge = {name: torch.cat((getattr(self, name), own)) for name, own in knowledge.items()}
        return knowledge

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``"blocks"``: the blocks of the transformer and its patch embedding; ``"rest"``."""
        groups: dict[str, list[nn.Parameter]] = {"blocks": [], "rest": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                inner = name.startswith(("network.backbone.blocks.", "network.backbone.patch_embed."))
                groups["blocks" if inner else "rest"].append(parameter)
        return groups

    def backbones(self) -> list[nn.Module]:
        return [self.network.backbone] + ([] if self.teacher is None else [self.teacher.module.backbone])

    def continue_from(self, left: Left, place: str) -> None:
        weights = self._carried(left(WEIGHTS))
        copy_tensors(self, weights, f"previous: {place}/{WEIGHTS}", optional=_is_classifier)
        self._remember(left, f"previous: {place}/{KNOWLEDGE}")

    def _remember(self, left: Left, path: str) -> None:
        """The network of before and what it knew, as far as they are asked for."""
        taught = self._aligned or self._held
        if taught:
            self.teacher = Frozen(copy.deepcopy(self.network))
        if taught or self.options.proto_history == "all":
            for name, rows in prototypes.checked(left(KNOWLEDGE), self.classifier.in_features, path).items():
                setattr(self, name, rows)

    def _carried(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The old weights without the classifier, unless it is the new one's, too."""
        head = weights.get(_CLASSIFIER)
        if self.options.carry_classifier and head is not None and head.shape == self.classifier.weight.shape:
            return weights
        return {name: value for name, value in weights.items() if not _is_classifier(name)}

    def _taught(self, images: Tensor, modality: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The teacher's features and prompts, as far as the terms of the loss ask for them."""
        if self.teacher is None:
            return None, None
        teacher = self._cast_teacher(images.device.type)
        with self.watch("teacher"), torch.no_grad():
            if not self._aligned:
                return None, teacher.prompts(images, modality)[1]
            feat, prompts = teacher(images, modality)
            return teacher.unit(feat), prompts if self._held else None

    def _cast_teacher(self, device: str) -> CKDANetwork:
        """The teacher, its matrices in the type that autocast would else make of them in every step."""
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        if dtype != self._teacher_dtype:
            for part in self.teacher.module.backbone.modules():  # prompts and neck are float32 whatever autocast says
                if isinstance(part, (nn.Linear, nn.Conv2d)):
                    part.to(dtype)
            self._teacher_dtype = dtype
        return self.teacher.module

    def _quiet_prompts(self, images: Tensor, modality: Tensor) -> Tensor:
        """The student's prompts as the teacher makes its own, by running statistics and without dropout."""
        self.network.prompts.eval()
        try:
            return self.network.prompts(images, modality)[1]
        finally:
            self.network.prompts.train(self.training)

    def _merge(self, images: TrainingImages) -> None:
        old, new = self._carried(read_final(self.options.previous, WEIGHTS)), self.state_dict()
        weight = self.options.old_weight
        if self.options.merge == "adaptive":
            trained = {name: value.clone() for name, value in new.items()}
            feats = [images.features(self.embed)]
            self.load_state_dict(old, strict=False)
            feats.append(images.features(self.embed))
            self.load_state_dict(trained)
            weight = affinity_change(*feats)
        merge_(new, old, weight, counters=self.options.merge_counters)


def _is_classifier(name: str) -> bool:
    return name == _CLASSIFIER


def halves(name: str, rows: Tensor) -> dict[str, Tensor]:
    """Visible and infrared rows, in this order, under the names that the losses have for them."""
    middle = len(rows) // 2
    return {f"{name}_v": rows[:middle], f"{name}_i": rows[middle:]}
