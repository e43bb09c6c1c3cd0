"""Losses on matrices of pairs and on centers; the floor is the matrix products alone, of each pass its own."""

import rivals
import torch
from torch.nn.functional import normalize

from cases._case import Case, by_definition, copy, in_turn, loss_passes, product, random_rows
from vifast import functional

BATCHES = ((32, 2048), (60, 2048), (120, 2048), (512, 2048), (2048, 2048))


def _products(a, b, forward, backward):
    return tuple(product(a, b, times) for times in (forward + backward, forward, backward))


def _graph(n, d, device="cpu"):
    a, b = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    return loss_passes(
        lambda: functional.graph_alignment(a, b), lambda: rivals.graph_alignment(a, b), (a, b), _products(a, a, 2, 4)
    )


def _relation(n, d, device="cpu"):
    student, teacher = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    return loss_passes(
        lambda: functional.relation_alignment(student, teacher),
        lambda: rivals.relation_alignment(student, teacher),
        (student,),
        _products(student, teacher, 2, 2),
    )


def _prototype(n, k, d, device="cpu"):
    student, teacher = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    prototypes = random_rows(k, d, seed=2, device=device)
    return loss_passes(
        lambda: functional.prototype_alignment(student, teacher, prototypes),
        lambda: rivals.prototype_alignment(student, teacher, prototypes),
        (student,),
        _products(student, prototypes, 2, 1),
    )


def _center_triplet(n, d, device="cpu"):
    """The floor multiplies the samples of each side with the centers of the other, and the centers with each other;
    backward it reads and writes the rows."""
    feat_v, feat_i = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    labels = torch.arange(n, device=device) // 4
    center_v, center_i = (x[: max(1, n // 4)].clone() for x in (feat_v, feat_i))
    mined = in_turn(product(feat_v, center_i), product(center_v, feat_i), product(center_v, center_i))
    return loss_passes(
        lambda: functional.center_triplet_loss(feat_v, feat_i, labels),
        lambda: rivals.center_triplet(feat_v, feat_i, labels),
        (feat_v, feat_i),
        (mined, mined, in_turn(copy(feat_v), copy(feat_i))),
    )


def _center_hinge(n, d, device="cpu"):
    """The floor reads both sets and writes both gradients once; forward it reads them."""
    raw, purified = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    labels, modality = torch.arange(n, device=device) // 8, torch.arange(n, device=device) % 2
    moved = in_turn(copy(raw), copy(purified))
    return loss_passes(
        lambda: functional.center_hinge(raw, purified, labels, modality),
        lambda: rivals.center_hinge(raw, purified, labels, modality),
        (raw, purified),
        (moved, copy(raw), moved),
    )


def _memory(n, k, d, device="cpu"):
    """Three streams of 8 identities; the floor reads and writes their rows once."""
    memory, feat = (
        normalize(random_rows(*shape, d, seed=seed, device=device), dim=2)
        for seed, shape in enumerate(((4, k), (3, n)))
    )
    labels = torch.arange(n, device=device) * 8 // n

    def ours():
        return functional.memory_update_(memory, feat, labels)

    return {
        "floor": copy(feat),
        "vifast": ours,
        "definition": by_definition(ours),
        "eager": lambda: rivals.memory_update(memory, feat, labels),
    }


CASES = (
    Case("graph_alignment", BATCHES, _graph),
    Case("relation_alignment", BATCHES, _relation),
    Case("prototype_alignment", ((32, 206, 768), (32, 395, 768), (32, 713, 768), (512, 713, 768)), _prototype),
    Case("center_triplet_loss", ((32, 768), (120, 2048), (512, 2048)), _center_triplet),
    Case("center_hinge", ((120, 2048), (512, 2048)), _center_hinge),
    Case("memory_update", ((32, 395, 2048), (128, 395, 2048)), _memory),
)
