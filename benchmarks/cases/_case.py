from collections.abc import Callable
from dataclasses import dataclass

import torch

import vifast

PASSES = ("both", "forward", "backward")


@dataclass(frozen=True)
class Case:
    op: str
    sizes: tuple[tuple[int, ...], ...]
    build: Callable[..., dict]
    gpu: bool = True
    settle: bool = False  # run everything once before each time it is timed, see measure.interleaved
    seconds: int = 6  # to time the first pass in, a third of it for every other

    def passes(self, *size, device="cpu"):
        """{pass: {provider: callable}}; what has no gradient has its forward pass alone."""
        built = self.build(*size, device=device)
        return built if "both" in built else {"forward": built}


class Backward:
    """The backward pass of one graph, which ``prepare`` builds outside of the time."""

    def __init__(self, forward, gradients):
        self.forward, self.gradients, self.out = forward, gradients, None

    def prepare(self):
        self.out = self.forward()

    def __call__(self):
        out, self.out = self.out, None
        return self.gradients(out)


def random_rows(*shape, seed, device):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device)


def differentiable(functions, leaves, floors, cotangent=None):
    """Every pass of every provider, differentiated with respect to ``leaves``; ``floors`` are of each of PASSES. The
    provider "definition" is vifast's own."""
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def gradients(out):
        return torch.autograd.grad(out, leaves, cotangent, allow_unused=True)

    def ways(forward, backward):
        return lambda: backward(forward()), forward, Backward(forward, backward)

    own = by_definition(functions["vifast"]), by_definition(gradients)
    every = {name: ways(function, gradients) for name, function in functions.items()}
    every = {"vifast": every["vifast"], "definition": ways(*own)} | every  # the heap that it leaves is not our start
    return {
        name: {"floor": floor} | {provider: passes[number] for provider, passes in every.items()}
        for number, (name, floor) in enumerate(zip(PASSES, floors, strict=True))
    }


def by_definition(function):
    def run(*args):
        with vifast.use_reference():
            return function(*args)

    return run


def loss_passes(ours, eager, leaves, floors):
    """Passes of a loss in all its forms."""
    return differentiable({"vifast": ours, "eager": eager, "compile": torch.compile(eager)}, leaves, floors)


def in_turn(*floors):
    """The work of several floors."""

    def run():
        for floor in floors:
            floor()

    return run


def product(a, b, times=1):
    """``times`` times a @ b.T, without autograd."""
    a, b = a.detach(), b.detach()
    out = a.new_empty(len(a), len(b))

    def run():
        for _ in range(times):
            torch.mm(a, b.T, out=out)

    return run


def copy(x):
    """One read and one write."""
    x = x.detach()
    out = torch.empty_like(x)
    return lambda: out.copy_(x)


def sum_of(a, b):
    """Two reads and one write."""
    a, b = a.detach(), b.detach()
    out = torch.empty_like(a)
    return lambda: torch.add(a, b, out=out)
