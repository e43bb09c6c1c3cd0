"""Losses of a batch whose floor is a matrix product."""

from functools import partial

import torch

from vifast import functional
from vifast.bench.case import Case, Work, copy, in_turn, product, random_rows


def _loss(function, backward):
    """The floor is one product forward and ``backward`` of them backward; of none, a read and a write of the rows."""

    def build(n, d, device="cpu", dtype=torch.float32):
        feat, labels = random_rows(n, d, seed=0, device=device, dtype=dtype), torch.arange(n, device=device) // 8
        floors = product(feat, feat), product(feat, feat, backward) if backward else copy(feat)
        floors = in_turn(*floors[: 1 + bool(backward)]), *floors
        return Work(function, (feat, labels), floors, (feat,))

    return build


def _pairwise(n, d, device="cpu", dtype=torch.float32):
    feat = random_rows(n, d, seed=0, device=device, dtype=dtype)
    return Work(functional.pairwise_distance, (feat,), (product(feat, feat),))


INFO_NCE = partial(functional.neighbor_loss, metric="cosine", temperature=0.1)
BATCHES = tuple((n, 2048) for n in (64, 128, 512, 2048, 8192))

CASES = (
    Case("triplet_loss", BATCHES, _loss(functional.triplet_loss, 0)),
    Case("weighted_triplet_loss", BATCHES, _loss(functional.weighted_triplet_loss, 2)),
    Case("neighbor_loss", BATCHES[:-1], _loss(INFO_NCE, 2)),
    Case("pairwise_distance", BATCHES[1:], _pairwise),
)
