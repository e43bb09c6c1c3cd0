"""Losses of a batch whose floor is a matrix product."""

import rivals
import torch

from cases._case import Case, copy, differentiable, in_turn, product
from vifast import functional


def _batch(n, d, device):
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(n, d, generator=generator).to(device).requires_grad_()
    return feat, torch.arange(n, device=device) // 8


def _loss_case(ours, backward, rivals_of):
    """The floor is one product forward and ``backward`` of them backward; of none, a read and a write of the rows."""

    def build(n, d, device="cpu"):
        feat, labels = _batch(n, d, device)
        floors = product(feat, feat), product(feat, feat, backward) if backward else copy(feat)
        losses = {"vifast": ours} | {name: make() for name, make in rivals_of.items()}
        functions = {name: lambda loss=loss: loss(feat, labels) for name, loss in losses.items()}
        return differentiable(functions, [feat], (in_turn(*floors[: 1 + bool(backward)]), *floors))

    return build


def _alone(n, d, device="cpu"):
    """Small batches stay in the caches that the rivals empty: the loss and the product in turn."""
    passes = _loss_case(functional.triplet_loss, 0, {})(n, d, device)
    return {part: {name: every[name] for name in ("floor", "vifast")} for part, every in passes.items()}


def _rivals_of(dense, **more):
    usual = {"eager": lambda: dense, "compile": lambda: torch.compile(dense)}
    return usual | {"round_trip": lambda: rivals.round_trip} | more


def _pairwise(n, d, device="cpu"):
    feat = _batch(n, d, device)[0].detach()
    return {
        "floor": product(feat, feat),
        "vifast": lambda: functional.pairwise_distance(feat),
        "eager": lambda: rivals.distances(feat),
        "cdist": lambda: torch.cdist(feat, feat),
    }


BATCHES = tuple((n, 2048) for n in (64, 128, 512, 2048, 8192))
_TRIPLET = _rivals_of(rivals.triplet_dense, eager_gather=lambda: rivals.triplet_gather, pml=rivals.triplet_pml)
_WEIGHTED = _rivals_of(rivals.weighted_dense)

CASES = (
    Case("triplet_loss", BATCHES, _loss_case(functional.triplet_loss, 0, _TRIPLET)),
    Case("triplet_loss_alone", BATCHES[:1], _alone),
    Case("weighted_triplet_loss", BATCHES, _loss_case(functional.weighted_triplet_loss, 2, _WEIGHTED)),
    Case("pairwise_distance", BATCHES[1:], _pairwise),
)
