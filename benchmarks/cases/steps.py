"""Whole training steps of the published systems, and their parts."""

from contextlib import nullcontext
from functools import partial

import torch

import vifast
from cases._case import Case
from vifast.nn import Purified
from vifast.systems.idkl import IDKL, IDKLOptions


class Step:
    """A training step, action by action: forward of every stage, their backward in reverse, the optimiser.

    ``stages`` by name make the loss of ``images``: each takes the tensors that the one before it gave. ``cotangents``
    are the gradients of the last one's, if that is no loss.
    """

    def __init__(self, optimizer, stages, images, cotangents=None):
        self.optimizer, self.images, self.cotangents = optimizer, images, cotangents
        self.actions = {f"{name}, forward": partial(self._forward, stage) for name, stage in stages.items()}
        self.actions |= {f"{name}, backward": self._backward for name in reversed(stages)}
        self.actions["optimizer"] = optimizer.step

    def start(self):
        self.optimizer.zero_grad()
        self.made, self.given, self.grads = [(self.images,)], [], self.cotangents

    def _forward(self, stage):
        self.given.append(tuple(x.detach().requires_grad_(x is not self.images) for x in self.made[-1]))
        with torch.autocast("cuda", torch.bfloat16, enabled=self.images.is_cuda):
            self.made.append(stage(*self.given[-1]))

    def _backward(self):
        torch.autograd.backward(self.made.pop(), self.grads)
        self.grads = tuple(x.grad for x in self.given.pop())


class Part:
    """One action of a step, or all of them; ``prepare`` takes those before it."""

    def __init__(self, step, name=None, definition=False):
        actions, at = list(step.actions.values()), list(step.actions).index(name) if name else 0
        self.step, self.before, self.own = step, actions[:at], actions[at : at + 1] if name else actions
        self.mode = vifast.use_reference if definition else nullcontext

    def prepare(self):
        self.step.start()
        self._take(self.before)

    def __call__(self):
        self._take(self.own)

    def _take(self, actions):
        with self.mode():
            for action in actions:
                action()


def captured(step):
    """The step as one launch of a CUDA graph."""
    whole, stream = Part(step), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # kernels are compiled and buffers made outside of the graph
            whole.prepare()
            whole()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        whole.prepare()
        whole()
    return graph.replay


def step_passes(system, stages, images):
    """``both`` is the step, and its floor that of the first stage, the backbone, alone; the other passes are its parts.
    Those of the backbone and the optimiser have no other definition. A card computes in bfloat16, as training does."""
    system.to(memory_format=torch.channels_last).train()
    weights = [p for p in system.parameters() if p.requires_grad]
    # Every step finds the same weights.
    optimizer = torch.optim.Adam(weights, lr=0.0, weight_decay=5e-3, fused=True, capturable=images.is_cuda)
    step, backbone = Step(optimizer, stages, images), next(iter(stages))
    Part(step, f"{backbone}, backward").prepare()
    floor = Step(optimizer, {backbone: stages[backbone]}, images, step.grads)
    passes = {"both": {"floor": Part(floor), "vifast": Part(step), "definition": Part(step, definition=True)}}
    if images.is_cuda:
        passes["both"]["graph"] = captured(Step(optimizer, stages, images))
    for name in step.actions:
        passes[name] = {"vifast": Part(step, name)}
        if name.partition(",")[0] not in (backbone, "optimizer"):
            passes[name]["definition"] = Part(step, name, definition=True)
    return passes


def _idkl(batch, height, width, classes, device="cpu"):
    """The release's network and objective on SYSU-MM01, of its batch of 120 images of 384 x 144 or a part of it."""
    torch.manual_seed(0)
    instances = 10 if batch % 20 == 0 else 4  # as published, and of what fits here
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
        with torch.autocast(images.device.type, enabled=False):
            return (system.objective(shared, Purified(*vectors), labels, modality)["loss"],)

    return step_passes(system, {"backbone": backbone, "purifier and pools": pools, "losses": losses}, images)


CASES = (Case("idkl_step", ((24, 128, 64, 395),), _idkl, gpu=((120, 384, 144, 395),), seconds=36),)
