"""Ops on feature maps, whose floor is a copy of the bytes that must move; of a layer, its products as bare matrices."""

import rivals
import torch

from cases._case import Case, differentiable, in_turn, product
from vifast import functional
from vifast.kernels import _C
from vifast.kernels.purifier import instance_stats, purifier
from vifast.nn import InstanceNormPurifier


def _map(shape, device, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    return x.requires_grad_()


def _copies(x, passes, gradients):
    """``passes`` reads or writes of the map; those of gradients go to new memory, as everybody's do, and to huge pages,
    as ours (csrc/huge_pages.h)."""
    source, out = x.detach(), torch.empty_like(x)

    def floor():
        fresh = [torch.empty_like(source) for _ in range(gradients)]  # all of them at a time
        for gradient in fresh:
            if gradient.device.type == "cpu":
                _C.prefer_huge_pages(gradient.view(-1))
            gradient.copy_(source)
        for part in range(2 * gradients, passes, 2):
            rows = len(x) if part + 2 <= passes else len(x) // 2
            out[:rows].copy_(source[:rows])

    return floor


def _passes(ours, eager, leaves, cotangent, reads):
    """Of a function that must read ``reads`` maps forward and again backward, and write the gradients of the leaves."""
    functions = {"vifast": ours, "eager": eager, "compile": torch.compile(eager)}
    functions = {name: lambda function=function: function(*leaves) for name, function in functions.items()}
    x, written = leaves[0], sum(leaf.dim() == 4 for leaf in leaves)
    moved = (2 * reads + written, written), (reads, 0), (reads + written, written)
    return differentiable(functions, leaves, [_copies(x, *counts) for counts in moved], cotangent)


def _gem_pool(n, c, h, w, device="cpu"):
    x = _map((n, c, h, w), device, 0)
    return _passes(functional.gem_pool, rivals.gem, [x], torch.rand(n, c, device=device), reads=1)


def _gem_pool_learned(n, c, h, w, device="cpu"):
    x, p = _map((n, c, h, w), device, 0), torch.tensor(3.0, device=device, requires_grad=True)
    ours = lambda x, p: functional.gem_pool(x, p=p)  # noqa: E731
    return _passes(ours, rivals.gem, [x, p], torch.rand(n, c, device=device), reads=1)


def _purified(x, gate_u, gate_x, weight, bias):
    mean, var = instance_stats(x.detach())
    return purifier(x, gate_u, gate_x, mean, (var + 1e-5).rsqrt(), weight, bias, True)


def _purifier(n, c, h, w, device="cpu"):
    maps = [_map((n, c, h, w), device, seed) for seed in range(3)]
    affine = [v.to(device).requires_grad_() for v in (torch.ones(c), torch.zeros(c))]
    cotangent = torch.rand(5, n, c, device=device)
    return _passes(_purified, rivals.purifier, [*maps, *affine], cotangent, reads=3)


def _purifier_layer(n, c, h, w, device="cpu"):
    layer, x = InstanceNormPurifier(c).to(device), _map((n, c, h, w), device, 0)
    leaves = [x, *layer.parameters()]
    functions = {"vifast": lambda *_: torch.stack(layer(x)), "eager": rivals.purifier_layer}
    functions["compile"] = torch.compile(rivals.purifier_layer)
    functions = {name: lambda function=function: function(*leaves) for name, function in functions.items()}
    down, up = (leaves[i].detach().flatten(1) for i in (3, 4))
    rows, hidden = torch.rand(n * h * w, c, device=device), torch.rand(n * h * w, len(down), device=device)
    forward = in_turn(product(rows, down, 2), product(hidden, up, 2))
    backward = in_turn(product(rows, up.T, 2), product(hidden, down.T, 2), product(rows.T, hidden.T, 4))
    floors = in_turn(forward, backward), forward, backward
    return differentiable(functions, leaves, floors, torch.rand(5, n, c, device=device))


def _prompt_consistency(n, c, h, w, device="cpu"):
    new, old = _map((n, c, h, w), device, 0), _map((n, c, h, w), device, 1).detach()
    return _passes(
        lambda new: functional.prompt_consistency(new, old),
        lambda new: torch.nn.functional.l1_loss(new, old),
        [new],
        torch.ones((), device=device),
        reads=2,
    )


CASES = (
    Case("gem_pool", ((120, 2048, 24, 9), (64, 2048, 24, 8)), _gem_pool, settle=True),
    Case("gem_pool_learned", ((64, 2048, 24, 8),), _gem_pool_learned, settle=True),
    Case("purifier", ((120, 2048, 24, 9), (120, 2048, 18, 9)), _purifier, settle=True),
    Case("purifier_layer", ((60, 2048, 24, 9),), _purifier_layer, settle=True),
    Case("prompt_consistency", ((64, 3, 256, 128),), _prompt_consistency, settle=True),
)
