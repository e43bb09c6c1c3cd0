"""MCE's objective: rows of three streams against the memories that there are of their classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vifast import _checks
from vifast.functional import memory_update_, standardized_kl, triplet_loss
from vifast.kernels.class_logits import class_logits
from vifast.kernels.linear import linear
from vifast.kernels.unit_rows import unit_rows

STREAMS = ("visible", "infrared", "auxiliary")  # the last is the visible images, each in one of its channels


class ClassMemory(nn.Module):
    """A row for every class and stream, and a global one: ``live``, which moves every step, and ``anchors``, the same
    as it was at the start of the epoch. Both [4, K, D]: visible, infrared, auxiliary, global; part of the state.

    Args:
        num_classes, channels: K, D.
        keep, keep_global: shares of the old row in a move, see :func:`vifast.functional.memory_update_`.

    Source: spec dakd 3.

    >>> memory = ClassMemory(2, 3)
    >>> memory.fill(torch.eye(3).repeat(2, 1).view(3, 2, 3))
    >>> memory.live[:, 0].tolist()[::3]
    [[1.0, 0.0, 0.0], [0.3333333432674408, 0.3333333432674408, 0.3333333432674408]]
    """

    def __init__(self, num_classes: int, channels: int, *, keep: float = 0.25, keep_global: float = 0.1):
        super().__init__()
        _checks.within("keep", keep, 0, 1)
        _checks.within("keep_global", keep_global, 0, 1)
        self.keep, self.keep_global = keep, keep_global
        sets = len(STREAMS) + 1
        self.register_buffer("live", torch.zeros(sets, num_classes, channels))
        self.register_buffer("anchors", torch.zeros(sets, num_classes, channels))

    @torch.no_grad()
    def fill(self, centers: Tensor) -> None:
        """Both from the mean rows of classes [3, K, D]: scaled to unit length, and for the global one their mean."""
        unit = unit_rows(centers.flatten(0, 1)).view_as(centers)
        self.live.copy_(torch.cat((unit, unit.mean(0, keepdim=True))))
        self.anchors.copy_(self.live)

    def move(self, feat: Tensor, labels: Tensor) -> None:
        """``live`` towards the unit rows [3, N, D] of a step; row i of every stream has label i."""
        memory_update_(self.live, feat, labels, keep=self.keep, keep_global=self.keep_global)


class MCEObjective(nn.Module):
    r"""MCE's training objective on unit rows of three streams; its memories stay as they are meanwhile.

    ``loss`` = center + global + visible + infrared + auxiliary_weight auxiliary + kl_weight kl, where

    - ``center``: mean over all rows of max(0, d(own) - d(nearest other) + margin), d the distance to the global anchors
      of the batch's classes;
    - ``global``: cross-entropy of rows M^T / temperature, M the live global memory; ``visible``, ``infrared`` and
      ``auxiliary``: of each stream's rows and its own live memory;
    - ``kl``: mean over all rows of KL(softmax(q) || softmax(o)), o the row's logits by its own stream's anchors, q
      those of another stream's row of the same place by the same anchors: infrared for visible and auxiliary, visible
      for infrared. No gradient through q.

    Args:
        num_classes, channels: K, D.
        temperature: of all logits, above 0.
        margin: at least 0.
        auxiliary_weight, kl_weight: at least 0.
        keep, keep_global: of the memories, see `ClassMemory`.

    ``forward(feat, labels)``: feat [3, N, D] unit rows, visible, infrared and auxiliary; labels [N] of every stream.

    Returns:
        A dict of scalars: ``loss`` and the named parts, which carry no weight.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Source: spec dakd 3.

    >>> objective = MCEObjective(3, 4)
    >>> parts = objective(torch.eye(4).repeat(3, 1, 1), torch.tensor([0, 0, 1, 2]))
    >>> round(parts["global"].item(), 4)  # of memories that know nothing: log 3
    1.0986
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 2048,
        *,
        temperature: float = 0.05,
        margin: float = 0.3,
        auxiliary_weight: float = 0.4,
        kl_weight: float = 1.2,
        keep: float = 0.25,
        keep_global: float = 0.1,
    ):
        super().__init__()
        _checks.positive("temperature", temperature)
        for name, value in (("margin", margin), ("auxiliary_weight", auxiliary_weight), ("kl_weight", kl_weight)):
            _checks.non_negative(name, value)
        self.temperature, self.margin = float(temperature), float(margin)
        self.auxiliary_weight, self.kl_weight = float(auxiliary_weight), float(kl_weight)
        self.memory = ClassMemory(num_classes, channels, keep=keep, keep_global=keep_global)

    def forward(self, feat: Tensor, labels: Tensor) -> dict[str, Tensor]:
        width = self.memory.live.size(2)
        if feat.dim() != 3 or feat.size(0) != len(STREAMS) or feat.size(2) != width:
            raise ValueError(f"feat: expected shape [3, N, {width}], got {list(feat.shape)}")
        labels = _checks.labels("labels", labels, "feat[0]", feat[0])
        center = triplet_loss(
            feat.flatten(0, 1),
            labels.repeat(3),
            margin=self.margin,
            reference=self.memory.anchors[-1, labels],
            reference_labels=labels,
        )
        everyone, visible, infrared, auxiliary = self._contrasts(feat, labels)
        kl = self._agreement(feat)
        loss = center + everyone + visible + infrared + self.auxiliary_weight * auxiliary + self.kl_weight * kl
        parts = {"center": center, "global": everyone, "visible": visible, "infrared": infrared}
        return {"loss": loss, **parts, "auxiliary": auxiliary, "kl": kl}

    def _contrasts(self, feat: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Cross-entropies by the live memories: of all rows by the global one, of each stream by its own."""
        scaled, live = feat / self.temperature, self.memory.live
        logits = [linear(scaled.flatten(0, 1), live[-1])]
        logits += [linear(rows, own) for rows, own in zip(scaled, live[:-1], strict=True)]
        terms = cross_entropy(torch.cat(logits), labels.repeat(6), reduction="none").view(6, -1).mean(1)
        return terms[:3].mean(), *terms[3:]

    def _agreement(self, feat: Tensor) -> Tensor:
        n, (visible, infrared, auxiliary, _) = feat.size(1), self.memory.anchors
        others = feat.detach()
        pair, last = (streams.flatten(0, 1) for streams in feat.split((2, 1)))
        pairs = (
            class_logits(pair, others[:2].flip(0).flatten(0, 1), visible, infrared, n, self.temperature),
            class_logits(last, others[1], auxiliary, auxiliary, n, self.temperature),
        )
        own, other = (torch.cat(sides) for sides in zip(*pairs, strict=True))
        return standardized_kl(own, other, (1.0,), standardize="none")
