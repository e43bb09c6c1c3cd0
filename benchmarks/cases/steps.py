"""Whole training steps of the published systems, and their parts."""

import torch

from cases._case import Backward, Case, by_definition
from vifast.nn import Purified
from vifast.systems.idkl import IDKL, IDKLOptions


class Update:
    """The optimiser's part of a step."""

    def __init__(self, optimizer, weights):
        self.optimizer, self.weights = optimizer, weights

    def prepare(self):
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)

    def __call__(self):
        self.optimizer.step()


def step_passes(system, stages, images):
    """``both`` is the step as the loop takes it, and its floor that of the backbone alone. The other passes are the
    parts of the step, each on what it gets there.

    ``stages`` by name, the backbone first, make the loss: each takes the tensors that the one before it gave.
    """
    system = system.to(memory_format=torch.channels_last).train()
    weights = [p for p in system.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=0.0, weight_decay=5e-3, fused=True)  # every step finds the same weights
    backbone, *rest = stages.values()
    given = [(images,)]
    for stage in stages.values():
        given.append(tuple(x.detach().requires_grad_() for x in stage(*given[-1])))
    cotangents = [tuple(map(torch.ones_like, given.pop()))]  # of each stage's output
    for stage, rows in zip(reversed(rest), reversed(given), strict=False):
        cotangents.insert(0, torch.autograd.grad(stage(*rows), rows, cotangents[0]))

    def step():
        optimizer.zero_grad()
        rows = (images,)
        for stage in stages.values():
            rows = stage(*rows)
        rows[0].backward()
        optimizer.step()

    def backbone_step():
        optimizer.zero_grad()
        torch.autograd.backward(backbone(images), cotangents[0])
        optimizer.step()

    passes = {"both": {"floor": backbone_step, "vifast": step, "definition": by_definition(step)}}
    for name, rows, cotangent in zip(stages, given, cotangents, strict=True):
        leaves = [x for x in (*weights, *rows) if x.requires_grad]
        passes |= _stage_passes(name, stages[name], rows, leaves, cotangent, own=stages[name] is not backbone)
    return passes | {"optimizer": {"vifast": Update(optimizer, weights)}}


def _stage_passes(name, stage, rows, leaves, cotangent, own):
    """Forward and backward of a stage, with its definition where it has ops of ``own``."""

    def forward():
        return stage(*rows)

    def gradients(out):
        return torch.autograd.grad(out, leaves, cotangent, allow_unused=True)

    ways = {"vifast": (forward, gradients)}
    if own:
        ways["definition"] = by_definition(forward), by_definition(gradients)
    return {
        f"{name}, forward": {provider: run for provider, (run, _) in ways.items()},
        f"{name}, backward": {provider: Backward(*way) for provider, way in ways.items()},
    }


def _idkl(batch, height, width, classes, device="cpu"):
    """The release's network and objective on SYSU-MM01; of its batch of 120 images of 384 x 144, what fits here."""
    torch.manual_seed(0)
    instances = 4
    system = IDKL.build(IDKLOptions(num_instances=instances), num_classes=classes).to(device)
    network = system.network
    images = torch.randn(batch, 3, height, width, device=device).to(memory_format=torch.channels_last)
    rows = torch.arange(batch, device=device)
    labels, modality = rows // instances, 1 - rows % 2

    def backbone(images):
        low = network.front(images)
        return network.shared(low), network.specific(low)

    def pools(shared, specific):
        return network.pool(shared), *network.purifier(specific)

    def losses(shared, *vectors):
        return (system.objective(shared, Purified(*vectors), labels, modality)["loss"],)

    return step_passes(system, {"backbone": backbone, "purifier and pools": pools, "losses": losses}, images)


CASES = (Case("idkl_step", ((24, 128, 64, 395),), _idkl, seconds=45),)
