"""What is timed: an op on inputs of one size, by pass, with the work that no implementation can do without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import vifast
from vifast.kernels._registry import Op

PASSES = ("both", "forward", "backward")


@dataclass(frozen=True)
class Work:
    """A function of ``args``, and its floors: of each of `PASSES`, or of what has no gradient of its forward alone.

    ``leaves`` are what it is differentiated with respect to, with ``cotangent`` as gradient of its output.
    """

    function: Callable
    args: Sequence[Any]
    floors: Sequence[Callable]
    leaves: Sequence[Tensor] = ()
    cotangent: Tensor | None = None

    def passes(self, rivals: Mapping[str, Callable[[], Any]]) -> dict[str, dict[str, Callable]]:
        """{pass: {provider: callable}} of ``floor``, ``vifast``, and ``rivals`` that are called without arguments."""
        ours = {"vifast": lambda: self.function(*self.args)}
        if not self.leaves:
            return {"forward": {"floor": self.floors[0]} | ours | dict(rivals)}
        for leaf in self.leaves:
            leaf.requires_grad_()
        every = {name: self._ways(function) for name, function in (ours | dict(rivals)).items()}
        return {
            name: {"floor": floor} | {provider: ways[number] for provider, ways in every.items()}
            for number, (name, floor) in enumerate(zip(PASSES, self.floors, strict=True))
        }

    def definition(self) -> Callable[[], Any]:
        """Our own call with the definitions in place of the kernels, forward and backward."""
        return ByDefinition(lambda: self.function(*self.args))

    def eager(self, *, compiled: bool = False) -> Callable[[], Any]:
        """The definitions as plain PyTorch, which autograd differentiates and ``torch.compile`` may fuse."""
        function = torch.compile(self.function) if compiled else self.function

        def run():
            with mock.patch.object(Op, "__call__", _inlined):
                return function(*self.args)

        return run

    def _ways(self, function: Callable) -> tuple[Callable, ...]:
        def gradients(out):
            return torch.autograd.grad(out, self.leaves, self.cotangent, allow_unused=True)

        backward = ByDefinition(gradients) if isinstance(function, ByDefinition) else gradients
        return lambda: backward(function()), function, Backward(function, backward)


@dataclass(frozen=True)
class Case:
    """``build(*size, device=, dtype=)`` makes the `Work`; ``quick`` is a size that is over in no time."""

    op: str
    sizes: tuple[tuple[int, ...], ...]
    build: Callable[..., Work]
    quick: tuple[int, ...] = field(default=())
    settle: bool = False  # run everything once before each time it is timed, see measure.interleaved


class ByDefinition:
    """A function under `vifast.use_reference`."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        with vifast.use_reference():
            return self.function(*args)


class Backward:
    """The backward pass of one graph, which ``prepare`` builds outside of the time."""

    def __init__(self, forward: Callable, gradients: Callable):
        self.forward, self.gradients, self.out = forward, gradients, None

    def prepare(self) -> None:
        self.out = self.forward()

    def __call__(self) -> Any:
        out, self.out = self.out, None
        return self.gradients(out)


def random_rows(*shape: int, seed: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def in_turn(*floors: Callable) -> Callable:
    """The work of several floors."""

    def run():
        for floor in floors:
            floor()

    return run


def product(a: Tensor, b: Tensor, times: int = 1) -> Callable:
    """``times`` times a @ b.T, without autograd."""
    a, b = a.detach(), b.detach()
    out = a.new_empty(len(a), len(b))

    def run():
        for _ in range(times):
            torch.mm(a, b.T, out=out)

    return run


def copy(x: Tensor) -> Callable:
    """One read and one write."""
    x = x.detach()
    out = torch.empty_like(x)
    return lambda: out.copy_(x)


def fill(x: Tensor) -> Callable:
    """One write."""
    return torch.empty_like(x.detach()).zero_


def sum_of(a: Tensor, b: Tensor) -> Callable:
    """Two reads and one write."""
    a, b = a.detach(), b.detach()
    out = torch.empty_like(a)
    return lambda: torch.add(a, b, out=out)


def _inlined(op: Op, *args: Any) -> Any:
    return op.definition(*args)
