"""DAKD as a trainable system: a student, the teacher that it learns from, and the teacher's prototypes."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vifast import _checks
from vifast.functional import class_centers
from vifast.losses import DAKDLoss
from vifast.models import fold_norms
from vifast.nn import BNNeck, Frozen, split_batch_norms
from vifast.systems.base import Batch, System, TrainingImages
from vifast.systems.dakd.details import details
from vifast.systems.dakd.exits import DAKDExits
from vifast.systems.dakd.options import DAKDOptions
from vifast.systems.embedding import EmbeddingNetwork

_OBJECTIVE = inspect.signature(DAKDLoss).parameters


class DAKD(System):
    """A network that is trained only to agree with a teacher of the same images, in embeddings and class profiles.

    The teacher is any trained system; see `learn_from`. It sees the images of a step at once, without gradient, its
    batch normalisations folded into its convolutions, and is no part of the state: features need the student alone.
    The student sees them at once too, with statistics of each modality by itself. The prototypes of identities are the
    mean features that the teacher has of the training images, by modality, and part of the state. A function of the
    step for the temperatures is ``objective.temperature_fn``. With ``teacher_mode: exits``, `build` gives `DAKDExits`.

    Expects as many visible as infrared images in a batch, in any order. The retrieval feature is the neck's output,
    scaled to unit length.

    Source: Deng et al. 2025, spec dakd.

    >>> dakd = DAKD.build(DAKDOptions(backbone="resnet_tiny", non_local=(0, 0, 1, 0)), num_classes=5).eval()
    >>> dakd.embed({"image": torch.zeros(2, 3, 64, 32), "modality": torch.tensor([0, 1])}).shape
    torch.Size([2, 128])
    """

    Options = DAKDOptions
    needs_teacher = True

    def __init__(self, options: DAKDOptions, *, num_classes: int):
        super().__init__()
        _checks.one_of("teacher_mode", options.teacher_mode, ("frozen", "ema"))
        _checks.within("teacher_momentum", options.teacher_momentum, 0, 1)
        self.options = options
        self.network = EmbeddingNetwork(options)
        width = self.network.out_channels
        given = {name: getattr(options, name) for name in _OBJECTIVE if hasattr(options, name)}
        self.objective = DAKDLoss(num_classes=num_classes, memory_dim=width, **given)
        self.register_buffer("prototypes_v", torch.zeros(num_classes, width))
        self.register_buffer("prototypes_i", torch.zeros(num_classes, width))
        self.heads = None
        if options.lam_id > 0:
            heads = [nn.Sequential(BNNeck(width), nn.Linear(width, num_classes, bias=False)) for _ in range(2)]
            self.heads = nn.ModuleList(heads)
        self.follower = copy.deepcopy(self.network).requires_grad_(False) if options.teacher_mode == "ema" else None
        split_batch_norms(self.network, options.bn_splits, repeats=options.bn_update_repeats)
        self.teacher: Frozen | None = None

    @classmethod
    def of(cls, options: DAKDOptions) -> type[System]:
        return DAKDExits if options.teacher_mode == "exits" else cls

    def learn_from(self, teacher: System) -> None:
        """Makes ``teacher`` the one to agree with; it is changed, and lives on the student's device from then on.

        Raises:
            ValueError: it takes images of another size, its features have another width, or it has another network
                where an option asks for the same.
        """
        height, width = self.options.image_size or (64, 32)
        pixels = next(teacher.parameters()).new_zeros(2, 3, height, width)
        try:
            with torch.no_grad():
                width = teacher.eval().embed({"image": pixels, "modality": pixels.new_tensor([0, 1]).long()}).size(1)
        except (RuntimeError, ValueError) as error:
            words = f"expected one that takes images of {height} x {width}, got {type(teacher).__name__}"
            raise ValueError(f"teacher: {words} ({' '.join(str(error).split())})") from error
        if width != self.network.out_channels:
            raise ValueError(f"teacher: expected features of width {self.network.out_channels}, got {width}")
        if self.options.student_init == "teacher":
            _copy_network(teacher, self.network, "student_init=teacher")
        if self.follower is not None:
            _copy_network(teacher, self.follower, "teacher_mode=ema")
            return
        self.teacher = Frozen(fold_norms(teacher)).to(self.prototypes_v.device)

    def start_epoch(self, epoch: int, images: TrainingImages) -> None:
        if epoch > 0 and self.options.proto_refresh == "never":
            return
        feat = images.features(lambda batch: self._taught(batch["image"], batch["modality"]))
        for modality, prototypes in enumerate((self.prototypes_v, self.prototypes_i)):
            labels = torch.where(images.modality == modality, images.labels, -1)  # of the others: not counted
            prototypes.copy_(normalize(class_centers(feat, labels, len(prototypes))[0]))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        shared = self.options.teacher_view == "shared"
        if not shared and "weak" not in batch:
            raise ValueError("batch: expected weak images for teacher_view=weak, see make_loader(weak=True)")
        order = batch["modality"].argsort(stable=True)  # visible first, whatever the sampler's layout
        images, modality, labels = (batch[name][order] for name in ("image", "modality", "label"))
        with self.watch("teacher"):
            teacher = self._taught(images if shared else batch["weak"][order], modality)
        with self.watch("forward"):
            student = self.network(images)
        # Both are float32, and so is everything that is computed of them.
        with self.watch("losses"), torch.autocast(images.device.type, enabled=False):
            sides = (side for rows in (student, teacher, labels) for side in rows.chunk(2))
            *rows, labels_v, labels_i = self.mined(*sides)
            known = {"labels_v": labels_v, "labels_i": labels_i, "step": self.step}
            if self.heads is not None:
                known |= {"logits_v": self.heads[0](rows[0]), "logits_i": self.heads[1](rows[1])}
            if self.observe is not None:
                self.observe(details(self.objective, *rows, self.prototypes_v, self.prototypes_i))
            return self.objective(*rows, self.prototypes_v, self.prototypes_i, **known)

    @torch.no_grad()
    def end_step(self) -> None:
        """A following teacher takes its share of what the student has become."""
        if self.follower is None:
            return
        own, theirs = self.follower.state_dict(), self.network.state_dict()
        pairs = [(value, theirs[name]) for name, value in own.items() if value.is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*pairs, strict=True)), 1 - self.options.teacher_momentum)

    def embed(self, batch: Batch) -> Tensor:
        return self.network(batch["image"])

    def backbones(self) -> list[nn.Module]:
        return [self.network.trunk] + ([] if self.teacher is None else self.teacher.module.backbones())

    def train(self, mode: bool = True) -> DAKD:
        super().train(mode)
        if self.follower is not None:
            self.follower.eval()
        return self

    @torch.no_grad()  # not in inference mode: the objective keeps the features for its backward
    def _taught(self, images: Tensor, modality: Tensor) -> Tensor:
        """Unit features of the teacher."""
        if self.follower is not None:
            return self.follower(images)
        if self.teacher is None:
            raise RuntimeError("teacher: expected one before the first step, see learn_from")
        return self.teacher.module.embed({"image": images, "modality": modality})


def _copy_network(teacher: System, network: nn.Module, why: str) -> None:
    """The teacher's network into one of the same form."""
    try:
        network.load_state_dict(teacher.network.state_dict())
    except (AttributeError, RuntimeError) as error:
        found = type(teacher).__name__
        raise ValueError(f"teacher: expected the student's network for {why}, got another of {found}") from error
