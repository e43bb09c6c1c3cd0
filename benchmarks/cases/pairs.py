"""Losses on matrices of pairs and on centers, forward and backward; the floor is the matrix products alone."""

import rivals
import torch

from cases._case import Case, loss_providers, random_rows
from vifast import functional

BATCHES = ((32, 2048), (60, 2048), (120, 2048), (512, 2048), (2048, 2048))


def _products(products, a, b):
    """``products`` times a @ b.T, without autograd."""
    a, b = a.detach(), b.detach()
    out = a.new_empty(len(a), len(b))

    def floor():
        for _ in range(products):
            torch.mm(a, b.T, out=out)

    return floor


def _graph(n, d, device="cpu"):
    a, b = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    return loss_providers(
        lambda: functional.graph_alignment(a, b), lambda: rivals.graph_alignment(a, b), (a, b), _products(6, a, a)
    )


def _relation(n, d, device="cpu"):
    student, teacher = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    return loss_providers(
        lambda: functional.relation_alignment(student, teacher),
        lambda: rivals.relation_alignment(student, teacher),
        (student,),
        _products(4, student, teacher),
    )


def _prototype(n, k, d, device="cpu"):
    student, teacher = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    prototypes = random_rows(k, d, seed=2, device=device)
    return loss_providers(
        lambda: functional.prototype_alignment(student, teacher, prototypes),
        lambda: rivals.prototype_alignment(student, teacher, prototypes),
        (student,),
        _products(3, student, prototypes),
    )


def _center_triplet(n, d, device="cpu"):
    feat_v, feat_i = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    labels = torch.arange(n, device=device) // 4
    return loss_providers(
        lambda: functional.center_triplet_loss(feat_v, feat_i, labels),
        lambda: rivals.center_triplet(feat_v, feat_i, labels),
        (feat_v, feat_i),
        _products(4, feat_v, feat_i),
    )


def _center_hinge(n, d, device="cpu"):
    raw, purified = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    labels, modality = torch.arange(n, device=device) // 8, torch.arange(n, device=device) % 2
    copies = torch.empty_like(raw), torch.empty_like(raw)

    def floor():  # reads and writes both sets once
        copies[0].copy_(raw.detach())
        copies[1].copy_(purified.detach())

    return loss_providers(
        lambda: functional.center_hinge(raw, purified, labels, modality),
        lambda: rivals.center_hinge(raw, purified, labels, modality),
        (raw, purified),
        floor,
    )


CASES = (
    Case("graph_alignment", BATCHES, _graph),
    Case("relation_alignment", BATCHES, _relation),
    Case("prototype_alignment", ((32, 206, 768), (32, 395, 768), (32, 713, 768), (512, 713, 768)), _prototype),
    Case("center_triplet_loss", ((32, 768), (120, 2048), (512, 2048)), _center_triplet),
    Case("center_hinge", ((120, 2048), (512, 2048)), _center_hinge),
)
