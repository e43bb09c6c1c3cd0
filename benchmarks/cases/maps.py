"""Ops on feature maps, forward and backward, whose floor is a copy of the bytes that must move."""

import rivals
import torch

import vifast
from cases._case import Case
from vifast import functional
from vifast.kernels.purifier import instance_stats, purifier


def _map(shape, device, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    return x.requires_grad_()


def _copies(x, passes, gradients):
    """``passes`` reads or writes of the map; the writes of gradients go to new memory, as everybody's do."""
    source, out = x.detach(), torch.empty_like(x)

    def floor():
        fresh = [source.clone() for _ in range(gradients)]  # noqa: F841 - all of them at a time
        for part in range(2 * gradients, passes, 2):
            rows = len(x) if part + 2 <= passes else len(x) // 2
            out[:rows].copy_(source[:rows])

    return floor


def _providers(ours, eager, leaves, cotangent, passes):
    def step(function):
        def run():
            for leaf in leaves:
                leaf.grad = None
            function(*leaves).backward(cotangent)

        return run

    def definition(*args):
        with vifast.use_reference():
            return ours(*args)

    functions = {"vifast": ours, "definition": definition, "eager": eager, "compile": torch.compile(eager)}
    return {"floor": _copies(leaves[0], passes, sum(leaf.dim() == 4 for leaf in leaves))} | {
        name: step(function) for name, function in functions.items()
    }


def _gem_pool(n, c, h, w, device="cpu"):
    x = _map((n, c, h, w), device, 0)
    return _providers(functional.gem_pool, rivals.gem, [x], torch.rand(n, c, device=device), passes=3)


def _gem_pool_learned(n, c, h, w, device="cpu"):
    x, p = _map((n, c, h, w), device, 0), torch.tensor(3.0, device=device, requires_grad=True)
    ours = lambda x, p: functional.gem_pool(x, p=p)  # noqa: E731
    return _providers(ours, rivals.gem, [x, p], torch.rand(n, c, device=device), passes=3)


def _purified(x, gate_u, gate_x, weight, bias):
    mean, var = instance_stats(x.detach())
    return purifier(x, gate_u, gate_x, mean, (var + 1e-5).rsqrt(), weight, bias, True)


def _purifier(n, c, h, w, device="cpu"):
    maps = [_map((n, c, h, w), device, seed) for seed in range(3)]
    affine = [v.to(device).requires_grad_() for v in (torch.ones(c), torch.zeros(c))]
    cotangent = torch.rand(5, n, c, device=device)
    return _providers(_purified, rivals.purifier, [*maps, *affine], cotangent, passes=9)


def _prompt_consistency(n, c, h, w, device="cpu"):
    new, old = _map((n, c, h, w), device, 0), _map((n, c, h, w), device, 1).detach()
    return _providers(
        lambda new: functional.prompt_consistency(new, old),
        lambda new: torch.nn.functional.l1_loss(new, old),
        [new],
        torch.ones((), device=device),
        passes=5,
    )


CASES = (
    Case("gem_pool", ((120, 2048, 24, 9), (64, 2048, 24, 8)), _gem_pool),
    Case("gem_pool_learned", ((64, 2048, 24, 8),), _gem_pool_learned),
    Case("purifier", ((120, 2048, 24, 9), (120, 2048, 18, 9)), _purifier),
    Case("prompt_consistency", ((64, 3, 256, 128),), _prompt_consistency),
)
