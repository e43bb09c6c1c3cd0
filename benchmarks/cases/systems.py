"""Whole training objectives on features."""

import torch

import vifast
from cases._case import Case
from vifast.nn import Purified
from vifast.systems.idkl import IDKLObjective


def _idkl(batch, channels, classes, device="cpu"):
    instances = 10 if batch % 20 == 0 else 4  # the published 12 identities of 10 images; a smoke run has 16 rows
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.rand(batch, channels, generator=generator).to(device).requires_grad_() for _ in range(6)]
    labels = torch.arange(batch, device=device) // instances
    modality = torch.arange(batch, device=device) % 2
    objective = IDKLObjective(classes, channels, num_instances=instances).to(device)
    weights = [p for name, p in objective.named_parameters() if name.startswith("classifier")]
    rows = leaves[0].detach()

    def floor():  # the classifiers' products, forward and backward
        for weight in weights:
            logits = rows @ weight.detach().T
            logits.T @ rows
            logits @ weight.detach()

    def step():
        for leaf in (*leaves, *objective.parameters()):
            leaf.grad = None
        objective(leaves[0], Purified(*leaves[1:]), labels, modality)["loss"].backward()

    def definition():
        with vifast.use_reference():
            step()

    return {"floor": floor, "vifast": step, "definition": definition}


CASES = (Case("idkl_objective", ((120, 2048, 395),), _idkl),)
