from collections.abc import Callable
from dataclasses import dataclass

import torch

import vifast


@dataclass(frozen=True)
class Case:
    op: str
    sizes: tuple[tuple[int, ...], ...]
    build: Callable[..., dict[str, Callable[[], object]]]
    gpu: bool = True


def random_rows(*shape, seed, device):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device)


def loss_providers(ours, eager, leaves, floor):
    """Steps of every provider; a step differentiates with respect to ``leaves``."""
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def definition():
        with vifast.use_reference():
            return ours()

    def step(loss):
        return lambda: torch.autograd.grad(loss(), leaves)

    losses = {"vifast": ours, "definition": definition, "eager": eager, "compile": torch.compile(eager)}
    return {"floor": floor} | {name: step(loss) for name, loss in losses.items()}
