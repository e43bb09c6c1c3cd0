"""The protocol between a published system and the training loop, which knows systems only through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from vifast.systems.gather import all_rows
from vifast.systems.stage import Left

#: As `vifast.data.make_loader` yields it: ``image [N, 3, H, W]`` normalised, ``modality [N]`` (0 visible, 1
#: infrared), ``index [N]`` in the dataset, ``label [N]`` in 0..num_classes-1 while training; ``auxiliary``, a
#: second view of the visible images, for a system that asks for it; and ``weak``, one of all images, where the option
#: ``teacher_view`` asks for it.
Batch = Mapping[str, Tensor]


class TrainingImages(Protocol):
    """The training split as a system may look at it between epochs: in its order, resized and normalised only.

    ``labels`` and ``modality [N]`` are those of the images, on the system's device; ``dataset`` is its name, and
    ``seed`` the run's.
    """

    dataset: str
    seed: int
    labels: Tensor
    modality: Tensor

    def features(self, embed: Callable[[Batch], Tensor]) -> Tensor:
        """What ``embed`` makes of all images, float32 ``[N, D]``; called in evaluation mode without gradients."""


class System(nn.Module, ABC):
    """A network with its objective; ``forward`` is the training step, so that wrappers of modules work.

    ``Options`` is a frozen dataclass of the system's own hyper-parameters; the configuration validates it. ``gather``
    says whose rows the objective sees: those of this process (``"rank"``), or of ``"all"``. ``watch`` is entered around
    the parts of a step by their names, ``"teacher"``, ``"forward"`` and ``"losses"``, so that the loop can time them.
    ``starts`` are the options that name files of which fresh weights are made: a trained system is built without them,
    and where they lie is not compared where a run goes on. A system that ``needs_teacher`` is given one by `learn_from`
    before its first step; batches have ``auxiliary`` images, those of ``make_loader(auxiliary=True)``, for one that
    asks for them. ``observe`` is not None in the steps of which more is to be recorded than their parts: it takes
    tensors by name, scalars and vectors. ``step`` counts the optimiser's steps before the one under way.
    """

    Options: ClassVar[type]
    starts: ClassVar[tuple[str, ...]] = ("weights",)
    needs_teacher: ClassVar[bool] = False
    auxiliary: ClassVar[bool] = False
    gather: str = "rank"
    step: int = 0
    observe: Callable[[Mapping[str, Tensor]], None] | None = None
    watch: Callable[[str], AbstractContextManager] = staticmethod(lambda part: nullcontext())

    @classmethod
    def build(cls, options: Any, *, num_classes: int) -> System:
        """The system with freshly initialised weights for ``num_classes`` training identities."""
        return cls.of(options)(options, num_classes=num_classes)

    @classmethod
    def of(cls, options: Any) -> type[System]:
        """The class that is built: this one, unless an option asks for another."""
        return cls

    @abstractmethod
    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars: ``"loss"`` (weighted total, with gradient) and its named parts (unweighted)."""

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """Features ``[N, D]`` for retrieval; called in evaluation mode without gradients."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by group name, so that a configuration can scale learning rates by group."""
        return {"all": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def backbones(self) -> list[nn.Module]:
        """The modules that ``torch.compile`` is worth for; none by default."""
        return []

    def learn_from(self, teacher: System) -> None:
        """Takes a trained system as the teacher, which is no part of the state.

        Raises:
            ValueError: it is not one to learn from; the message begins with ``teacher:``.
        """
        raise ValueError(f"teacher: expected none, {type(self).__name__} learns from labels alone")

    def continue_from(self, left: Left, place: str) -> None:
        """Makes fresh weights those of the stage after the one that ``left`` its own and its knowledge, see `finish`,
        at ``place``.

        Raises:
            FileNotFoundError, ValueError: something of it is missing or does not fit; the message begins with
                ``previous:`` and has the place.
        """
        raise ValueError(f"previous: expected none, {type(self).__name__} has one stage")

    def start_epoch(self, epoch: int, images: TrainingImages) -> None:
        """Called once before the first step of each epoch (from 0), for memories and prototypes; nothing here.

        What it makes must be kept in buffers: a run that is resumed within an epoch reads them from its checkpoint.
        """

    def end_step(self) -> None:
        """Called once after every step of the optimiser, however many batches it had; nothing here."""

    def finish(self, images: TrainingImages) -> dict[str, Tensor]:
        """Called once after the last epoch, before the last evaluation; nothing here.

        It may change the weights to those that are to be kept, and returns tensors for a next stage. The loop writes
        both to the run's ``final/``. A run that is cut short meanwhile does it again from its last checkpoint, so it
        must be a function of weights, images and PyTorch's generator alone.
        """
        return {}

    def mined(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """The rows that the objective compares: as they are, or of all processes, see `all_rows`."""
        return all_rows(*rows) if self.gather == "all" else rows

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.training_step(batch)
