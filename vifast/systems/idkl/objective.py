"""IDKL's objective: heads on two branches, and everything that is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vifast import _checks
from vifast.functional import center_hinge, entropy_hinge
from vifast.kernels.linear import linear
from vifast.losses import IDKLLoss
from vifast.losses.idkl import TERMS as ALIGNED
from vifast.nn import BNNeck, Purified

HIDDEN = 100  # width of a modality head
OWN = ("ce_shared", "ce_specific", "modality", "confusion", "purifier")
TERMS = OWN + ALIGNED  #: every part of the objective


class ModalityHead(nn.Sequential):
    """Visible or infrared, from a feature: two hidden layers with batch norm, ReLU and dropout.

    >>> import torch
    >>> ModalityHead(16)(torch.zeros(2, 16)).shape
    torch.Size([2, 2])
    """

    def __init__(self, channels: int, *, dropout: float = 0.5):
        layers: list[nn.Module] = []
        for width in (channels, HIDDEN):
            layers += [nn.Linear(width, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(HIDDEN, 2))


class IDKLObjective(nn.Module):
    r"""IDKL's complete training objective on pooled features, heads included.

    ``loss`` = ce_shared + ce_specific + triplet_shared + triplet_specific + modality + confusion + 0.1 purifier
    + mdr + the weighted tgsa and csa of :class:`vifast.losses.IDKLLoss`, where

    - ``ce_*``: cross-entropy of the classifiers on the necks' outputs, label -1 left out;
    - ``modality``: cross-entropy of a head on the specific feature against the modality; ``confusion``: of a head on
      the shared feature against labels of which, in the sampler's alternating order, exactly half are wrong (the first
      half of the batch's modalities, each twice, rotated left by one);
    - ``purifier``: entropy hinge of raw against masked map on a classifier of its own, and centre hinge of the normed
      against the masked normed map.

    Nothing is detached: every term moves both of its sides, unless ``distill`` says otherwise.

    Args:
        num_classes: identities.
        channels: C of the features.
        margin: of the triplets.
        graph: ``"full"`` (the published weights of a batch of 120), ``"light"`` (those of any other) or ``"off"``.
        dropout: of the modality heads.
        num_instances, distill: see :class:`vifast.losses.IDKLLoss`.
        terms: the parts that count, of `TERMS`; the others are 0 and not computed. For ablations.

    ``forward(shared, purified, labels, modality)``: shared [B, C] pooled before the neck, purified as
    :class:`vifast.nn.InstanceNormPurifier` returns it, labels [B], modality [B] (0 visible, 1 infrared), alternating.

    Returns:
        A dict of scalars: ``loss`` and the named parts. ``purifier``, ``tgsa`` and ``csa`` carry no weight, ``mdr`` is
        what enters the total.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Source: spec idkl 2-6; Ren and Zhang 2024.

    Example:
        >>> import torch
        >>> from vifast.nn import Purified
        >>> shared, purified = torch.randn(8, 16), Purified(*torch.randn(5, 8, 16))
        >>> objective = IDKLObjective(num_classes=3, channels=16)
        >>> parts = objective(shared, purified, torch.arange(8) // 4, torch.arange(8) % 2)
        >>> parts["loss"].shape
        torch.Size([])
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 2048,
        *,
        margin: float = 1.3,
        graph: str = "full",
        dropout: float = 0.5,
        num_instances: int | None = None,
        distill: str = "symmetric",
        terms: Sequence[str] = TERMS,
    ):
        super().__init__()
        _checks.some_of("terms", terms, TERMS)
        self.terms = tuple(terms)
        self.alignment = IDKLLoss(
            margin=margin,
            graph=graph,
            num_instances=num_instances,
            distill=distill,
            terms=[term for term in terms if term in ALIGNED],
        )
        self.neck_shared, self.neck_specific = BNNeck(channels), BNNeck(channels)
        self.classifier_shared = nn.Linear(channels, num_classes, bias=False)
        self.classifier_specific = nn.Linear(channels, num_classes, bias=False)
        self.classifier_entropy = nn.Linear(channels, num_classes, bias=False)
        self.modality_shared = ModalityHead(channels, dropout=dropout)
        self.modality_specific = ModalityHead(channels, dropout=dropout)

    def forward(self, shared: Tensor, purified: Purified, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        labels, modality = labels.long(), modality.long()
        neck_shared, neck_specific = self.neck_shared(shared), self.neck_specific(purified.fused)
        logits_shared = linear(neck_shared, self.classifier_shared.weight)
        logits_specific = linear(neck_specific, self.classifier_specific.weight)
        confused = modality[: len(modality) // 2].repeat_interleave(2).roll(-1)
        aligned = self.alignment(shared, purified.fused, logits_shared, logits_specific, labels, modality)
        own: dict[str, Callable[[], Tensor]] = {
            "ce_shared": lambda: cross_entropy(_wide(logits_shared), labels, ignore_index=-1),
            "ce_specific": lambda: cross_entropy(_wide(logits_specific), labels, ignore_index=-1),
            "modality": lambda: cross_entropy(_wide(self.modality_specific(neck_specific)), modality),
            "confusion": lambda: cross_entropy(_wide(self.modality_shared(neck_shared)), confused),
            "purifier": lambda: self._purifier(purified, labels, modality),
        }
        zero = aligned["loss"].new_zeros(())
        parts = {name: part() if name in self.terms else zero for name, part in own.items()}
        loss = aligned.pop("loss") + 0.1 * parts["purifier"]
        loss = loss + parts["ce_shared"] + parts["ce_specific"] + parts["modality"] + parts["confusion"]
        return {"loss": loss, **parts, **aligned}

    def _purifier(self, purified: Purified, labels: Tensor, modality: Tensor) -> Tensor:
        raw, masked = (linear(rows, self.classifier_entropy.weight) for rows in (purified.raw, purified.masked))
        hinge = center_hinge(purified.normed, purified.normed_masked, labels, modality)
        return entropy_hinge(raw, masked) + hinge


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
