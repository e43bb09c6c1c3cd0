"""Old and new weights become one model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ROWS = 1024  # of the affinities that exist at a time
SHARPNESS = 100.0


@torch.no_grad()
def merge_(new: Mapping[str, Tensor], old: Mapping[str, Tensor], old_weight: float, *, counters: bool = False) -> None:
    """new <- old_weight * old + (1 - old_weight) * new for all names of ``old``; exact for 0 and 1.

    Integers are left alone, or with ``counters`` mixed and cut.

    >>> weights = {"a": torch.tensor([1.0]), "steps": torch.tensor(10)}
    >>> merge_(weights, {"a": torch.tensor([3.0]), "steps": torch.tensor(20)}, 0.5)
    >>> weights["a"].item(), weights["steps"].item()
    (2.0, 10)
    """
    pairs = [(new[name], value.to(new[name])) for name, value in old.items()]
    real = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([one for one, _ in real], [other for _, other in real], old_weight)
    for one, other in pairs:
        if counters and not one.is_floating_point():
            one.copy_(torch.lerp(one.double(), other.double(), old_weight))


def affinity_change(one: Tensor, other: Tensor) -> float:
    """How far two models disagree about who resembles whom, the share of old weights in an adaptive merge; 0..1.

    Mean over images of the L1 distance of their affinities, softmax of 100 times the cosine to all images; at most 1.
    Features are unit rows [N, D]. Memory: two blocks of 1024 x N. Source: LSTKC, whose new weights have 1 minus it.

    >>> affinity_change(torch.eye(3), torch.eye(3))
    0.0
    """
    total = torch.zeros((), dtype=torch.float64, device=one.device)
    for rows, others in zip(one.split(ROWS), other.split(ROWS), strict=True):
        affinity = (SHARPNESS * rows @ one.T).softmax(1)
        total += (affinity - (SHARPNESS * others @ other.T).softmax(1)).abs().sum().double()
    return min(total.item() / max(len(one), 1), 1.0)
