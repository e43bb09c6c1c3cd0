"""Ops on feature maps, whose floor is a copy of the bytes that must move; of a layer, its products as bare matrices."""

import torch

from vifast import functional
from vifast.bench.case import Case, Work, in_turn, product, random_rows
from vifast.kernels import _C
from vifast.kernels.purifier import instance_stats, purifier
from vifast.nn import InstanceNormPurifier, ModalityPrompts


def _fresh(like):
    """Memory that nobody wrote yet, in huge pages on the CPU."""
    out = torch.empty_like(like)
    if out.device.type == "cpu":
        _C.prefer_huge_pages(out.view(-1).view(torch.float32))
    return out


def _copies(x, passes, gradients):
    """``passes`` reads or writes of the map; those of gradients go to new memory, as everybody's do, and to huge pages,
    as ours (csrc/huge_pages.h)."""
    source, out = x.detach(), torch.empty_like(x)

    def floor():
        fresh = [_fresh(source) for _ in range(gradients)]  # all of them at a time
        for gradient in fresh:
            gradient.copy_(source)
        for part in range(2 * gradients, passes, 2):
            rows = len(x) if part + 2 <= passes else len(x) // 2
            out[:rows].copy_(source[:rows])

    return floor


def _work(function, leaves, cotangent, reads, *others):
    """Of a function that must read ``reads`` maps forward and again backward, and write the gradients of the leaves."""
    x, written = leaves[0], sum(leaf.dim() == 4 for leaf in leaves)
    moved = (2 * reads + written, written), (reads, 0), (reads + written, written)
    return Work(function, (*leaves, *others), [_copies(x, *counts) for counts in moved], leaves, cotangent)


def _gem_pool(n, c, h, w, device="cpu", dtype=torch.float32):
    x = random_rows(n, c, h, w, seed=0, device=device, dtype=dtype)
    return _work(functional.gem_pool, [x], torch.rand(n, c, device=device, dtype=dtype), 1)


def _gem_pool_learned(n, c, h, w, device="cpu", dtype=torch.float32):
    leaves = [random_rows(n, c, h, w, seed=0, device=device, dtype=dtype), torch.tensor(3.0, device=device)]
    cotangent = torch.rand(n, c, device=device, dtype=dtype)
    return _work(lambda x, p: functional.gem_pool(x, p=p), leaves, cotangent, 1)


def _purified(x, gate_u, gate_x, weight, bias):
    mean, var = instance_stats(x.detach())
    return purifier(x, gate_u, gate_x, mean, (var + 1e-5).rsqrt(), weight, bias, True)


def _purifier(n, c, h, w, device="cpu", dtype=torch.float32):
    maps = [random_rows(n, c, h, w, seed=seed, device=device, dtype=dtype) for seed in range(3)]
    affine = [torch.ones(c, device=device), torch.zeros(c, device=device)]
    return _work(_purified, [*maps, *affine], torch.rand(5, n, c, device=device), 3)


def _purifier_layer(n, c, h, w, device="cpu", dtype=torch.float32):
    layer = InstanceNormPurifier(c).to(device, dtype)
    x = random_rows(n, c, h, w, seed=0, device=device, dtype=dtype)
    leaves, kind = [x, *layer.parameters()], {"device": device, "dtype": dtype}
    down, up = (leaves[i].detach().flatten(1) for i in (3, 4))
    rows, hidden = torch.rand(n * h * w, c, **kind), torch.rand(n * h * w, len(down), **kind)
    forward = in_turn(product(rows, down, 2), product(hidden, up, 2))
    backward = in_turn(product(rows, up.T, 2), product(hidden, down.T, 2), product(rows.T, hidden.T, 4))
    floors = in_turn(forward, backward), forward, backward
    return Work(lambda x, *_: torch.stack(layer(x)), leaves, floors, leaves, torch.rand(5, n, c, device=device))


def _prompt_consistency(n, c, h, w, device="cpu", dtype=torch.float32):
    new, old = (random_rows(n, c, h, w, seed=seed, device=device, dtype=dtype) for seed in (0, 1))
    return _work(functional.prompt_consistency, [new], torch.ones((), device=device), 2, old)


def _modality_prompts(n, c, h, w, device="cpu", dtype=torch.float32):
    """In training, with its dropout of a fixed seed. The floor reads the images and writes prompted ones and prompts;
    backward it reads both gradients and the images."""
    module = ModalityPrompts(channels=c, cell=min(16, h // 2, w // 2)).to(device, dtype)
    images = random_rows(n, c, h, w, seed=0, device=device, dtype=dtype)
    modality = torch.arange(n, device=device) * 2 // n

    def prompted(images, modality, module):
        torch.manual_seed(0)
        return module(images, modality)

    def forward():
        prompted, prompt = _fresh(images), _fresh(images)
        prompted.copy_(images)
        prompt.zero_()

    backward = _copies(images, 3, 0)
    cotangent = [random_rows(n, c, h, w, seed=seed, device=device, dtype=dtype) for seed in (1, 2)]
    floors = in_turn(forward, backward), forward, backward
    return Work(prompted, (images, modality, module), floors, list(module.parameters()), cotangent)


CASES = (
    Case("gem_pool", ((120, 2048, 24, 9), (64, 2048, 24, 8)), _gem_pool, (8, 2048, 24, 8), settle=True),
    Case("gem_pool_learned", ((64, 2048, 24, 8),), _gem_pool_learned, (8, 2048, 24, 8), settle=True),
    Case("purifier", ((120, 2048, 24, 9), (120, 2048, 18, 9)), _purifier, (8, 2048, 24, 9), settle=True),
    Case("purifier_layer", ((60, 2048, 24, 9),), _purifier_layer, (8, 2048, 24, 9), settle=True),
    Case("prompt_consistency", ((64, 3, 256, 128),), _prompt_consistency, settle=True),
    Case("modality_prompts", ((64, 3, 256, 128),), _modality_prompts, settle=True),
)
