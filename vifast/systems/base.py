"""The protocol between a published system and the training loop, which knows systems only through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

#: As `vifast.data.make_loader` yields it: ``image [N, 3, H, W]`` normalised, ``modality [N]`` (0 visible, 1
#: infrared), ``label [N]`` in 0..num_classes-1 while training.
Batch = Mapping[str, Tensor]


class System(nn.Module, ABC):
    """A network with its objective; ``forward`` is the training step, so that wrappers of modules work.

    ``Options`` is a frozen dataclass of the system's own hyper-parameters; the configuration validates it.
    """

    Options: ClassVar[type]

    @classmethod
    def build(cls, options: Any, *, num_classes: int) -> System:
        """The system with freshly initialised weights for ``num_classes`` training identities."""
        return cls(options, num_classes=num_classes)

    @abstractmethod
    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars: ``"loss"`` (weighted total, with gradient) and its named parts (unweighted)."""

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """Features ``[N, D]`` for retrieval; called in evaluation mode without gradients."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by group name, so that a configuration can scale learning rates by group."""
        return {"all": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch (from 0), for memories, prototypes and stages; does nothing here."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.training_step(batch)
