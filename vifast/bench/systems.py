"""Whole training objectives on features."""

import torch
from torch.nn.functional import normalize

from vifast.bench.case import Case, Work, in_turn, product, random_rows
from vifast.nn import Purified
from vifast.systems.idkl import IDKLObjective
from vifast.systems.mce import MCEObjective


def _idkl(batch, channels, classes, device="cpu", dtype=torch.float32):
    instances = 10 if batch % 20 == 0 else 4  # the published 12 identities of 10 images; a smoke run has 16 rows
    generator = torch.Generator().manual_seed(0)
    features = [torch.rand(batch, channels, generator=generator).to(device, dtype) for _ in range(6)]
    labels = torch.arange(batch, device=device) // instances
    modality = torch.arange(batch, device=device) % 2
    objective = IDKLObjective(classes, channels, num_instances=instances).to(device, dtype)
    weights = [p.detach() for name, p in objective.named_parameters() if name.startswith("classifier")]
    rows, logits = features[0].detach(), torch.rand(batch, classes, device=device, dtype=dtype)
    forward = in_turn(*(product(rows, weight) for weight in weights))  # the classifiers' products
    backward = in_turn(*(lambda weight=weight: (logits.T @ rows, logits @ weight) for weight in weights))

    def ours(shared, *pooled):
        return objective(shared, Purified(*pooled), labels, modality)["loss"]

    floors = in_turn(forward, backward), forward, backward
    return Work(ours, features, floors, [*features, *objective.parameters()])


def _mce(n, channels, classes, device="cpu", dtype=torch.float32):
    """The floor multiplies rows of twelve pairs of a stream and a memory, and the gradients of nine."""
    kind = {"device": device, "dtype": dtype}
    objective = MCEObjective(classes, channels).to(**kind)
    objective.memory.fill(random_rows(3, classes, channels, seed=0, **kind))
    feat = normalize(random_rows(3, n, channels, seed=1, **kind), dim=2)
    labels = torch.arange(n, device=device) * 8 // n
    live, anchors = objective.memory.live, objective.memory.anchors
    logits = random_rows(3 * n, classes, seed=2, **kind)
    forward, backward = product(feat.flatten(0, 1), live[0], 4), product(logits, live[0].T.contiguous(), 3)
    floors = in_turn(forward, backward), forward, backward

    def ours(feat, labels, live, anchors):
        return objective(feat, labels)["loss"]

    return Work(ours, (feat, labels, live, anchors), floors, (feat,))


CASES = (
    Case("idkl_objective", ((120, 2048, 395),), _idkl),
    Case("mce_objective", ((32, 2048, 395),), _mce),
)
