"""Losses on matrices of pairs and on centers; the floor is the matrix products alone, of each pass its own."""

from functools import partial

import torch
from torch.nn.functional import normalize

from vifast import functional
from vifast.bench.case import Case, Work, copy, fill, in_turn, product, random_rows

BATCHES = ((32, 2048), (60, 2048), (120, 2048), (512, 2048), (2048, 2048))


def _products(a, b, forward, backward):
    return tuple(product(a, b, times) for times in (forward + backward, forward, backward))


def _sides(n, d, **kind):
    return (random_rows(n, d, seed=seed, **kind) for seed in (0, 1))


def _graph(n, d, device="cpu", dtype=torch.float32):
    a, b = _sides(n, d, device=device, dtype=dtype)
    return Work(functional.graph_alignment, (a, b), _products(a, a, 2, 4), (a, b))


def _relation(n, d, device="cpu", dtype=torch.float32):
    student, teacher = _sides(n, d, device=device, dtype=dtype)
    floors = _products(student, teacher, 2, 2)
    return Work(functional.relation_alignment, (student, teacher), floors, (student,))


def _prototype(n, k, d, device="cpu", dtype=torch.float32):
    student, teacher = _sides(n, d, device=device, dtype=dtype)
    prototypes = random_rows(k, d, seed=2, device=device, dtype=dtype)
    floors = _products(student, prototypes, 2, 1)
    return Work(functional.prototype_alignment, (student, teacher, prototypes), floors, (student,))


def _center_triplet(n, d, device="cpu", dtype=torch.float32):
    """The floor multiplies the samples of each side with the centers of the other, and the centers with each other;
    backward it reads and writes the rows."""
    feat_v, feat_i = _sides(n, d, device=device, dtype=dtype)
    labels = torch.arange(n, device=device) // 4
    center_v, center_i = (x[: max(1, n // 4)].clone() for x in (feat_v, feat_i))
    mined = in_turn(product(feat_v, center_i), product(center_v, feat_i), product(center_v, center_i))
    floors = mined, mined, in_turn(copy(feat_v), copy(feat_i))
    return Work(functional.center_triplet_loss, (feat_v, feat_i, labels), floors, (feat_v, feat_i))


def _center_cluster(n, d, device="cpu", dtype=torch.float32):
    """The floor reads the rows, multiplies the centers with each other, and backward once more and with weights."""
    feat, labels = random_rows(n, d, seed=0, device=device, dtype=dtype), torch.arange(n, device=device) // 4
    centers = feat[: max(1, n // 4)].clone()
    floors = copy(feat), product(centers, centers), copy(feat), product(centers, centers, 2)
    loss = partial(functional.center_cluster_loss, margin=60.0)  # of rows of this length: every pair is within it
    return Work(loss, (feat, labels), (in_turn(*floors), in_turn(*floors[:2]), in_turn(*floors[2:])), (feat,))


def _center_hinge(n, d, device="cpu", dtype=torch.float32):
    """The floor reads both sets and writes both gradients once; forward it reads them."""
    raw, purified = _sides(n, d, device=device, dtype=dtype)
    labels, modality = torch.arange(n, device=device) // 8, torch.arange(n, device=device) % 2
    moved = in_turn(copy(raw), copy(purified))
    floors = moved, copy(raw), moved
    return Work(functional.center_hinge, (raw, purified, labels, modality), floors, (raw, purified))


def _center_loss(n, k, d, device="cpu", dtype=torch.float32):
    """The floor reads the rows and writes both gradients once; forward it reads them."""
    feat, labels = random_rows(n, d, seed=0, device=device, dtype=dtype), torch.arange(n, device=device) // 8
    centers = random_rows(k, d, seed=1, device=device, dtype=dtype)
    moved = in_turn(copy(feat), fill(centers))
    return Work(functional.center_loss, (feat, labels % k, centers), (moved, copy(feat), moved), (feat, centers))


def _memory(n, k, d, device="cpu", dtype=torch.float32):
    """Three streams of 8 identities; the floor reads and writes their rows once."""
    memory = normalize(random_rows(4, k, d, seed=0, device=device), dim=2)
    feat = normalize(random_rows(3, n, d, seed=1, device=device, dtype=dtype), dim=2)
    labels = torch.arange(n, device=device) * 8 // n
    return Work(functional.memory_update_, (memory, feat, labels), (copy(feat),))


CASES = (
    Case("graph_alignment", BATCHES, _graph),
    Case("relation_alignment", BATCHES, _relation),
    Case("prototype_alignment", ((32, 206, 768), (32, 395, 768), (32, 713, 768), (512, 713, 768)), _prototype),
    Case("center_triplet_loss", ((32, 768), (120, 2048), (512, 2048)), _center_triplet),
    Case("center_cluster_loss", ((64, 2048), (120, 2048), (512, 2048)), _center_cluster),
    Case("center_hinge", ((120, 2048), (512, 2048)), _center_hinge),
    Case("center_loss", ((32, 395, 2048), (120, 395, 2048)), _center_loss, settle=True),
    Case("memory_update", ((32, 395, 2048), (128, 395, 2048)), _memory),
)
