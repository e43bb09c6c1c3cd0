"""Losses of a batch whose floor is a matrix product."""

import rivals
import torch

import vifast
from cases._case import Case
from vifast import functional


def _batch(n, d, device):
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(n, d, generator=generator).to(device).requires_grad_()
    return feat, torch.arange(n, device=device) // 8


def _step(loss, feat, labels):
    def run():
        feat.grad = None
        loss(feat, labels).backward()

    return run


def _reference(loss):
    def run(feat, labels):
        with vifast.use_reference():
            return loss(feat, labels)

    return run


def _loss_case(ours, dense, products, extra):
    def build(n, d, device="cpu"):
        feat, labels = _batch(n, d, device)
        rows, out = feat.detach(), torch.empty(n, n, device=device)

        def floor():
            for _ in range(products):
                torch.mm(rows, rows.T, out=out)

        losses = {"vifast": ours, "definition": _reference(ours), "eager": dense, "compile": torch.compile(dense)}
        losses["round_trip"] = rivals.round_trip
        losses |= {name: make() for name, make in extra.items()}
        return {"floor": floor} | {name: _step(loss, feat, labels) for name, loss in losses.items()}

    return build


def _pairwise(n, d, device="cpu"):
    feat = _batch(n, d, device)[0].detach()
    out = torch.empty(n, n, device=device)
    return {
        "floor": lambda: torch.mm(feat, feat.T, out=out),
        "vifast": lambda: functional.pairwise_distance(feat),
        "eager": lambda: rivals.distances(feat),
        "cdist": lambda: torch.cdist(feat, feat),
    }


BATCHES = tuple((n, 2048) for n in (64, 128, 512, 2048, 8192))
_TRIPLET_RIVALS = {"eager_gather": lambda: rivals.triplet_gather, "pml": rivals.triplet_pml}

CASES = (
    Case("triplet_loss", BATCHES, _loss_case(functional.triplet_loss, rivals.triplet_dense, 1, _TRIPLET_RIVALS)),
    Case(
        "weighted_triplet_loss",
        BATCHES,
        _loss_case(functional.weighted_triplet_loss, rivals.weighted_dense, 3, {}),
    ),
    Case("pairwise_distance", BATCHES[1:], _pairwise),
)
