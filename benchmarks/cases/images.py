"""Ops on decoded images, whose floor is a copy of their bytes."""

import rivals
import torch

from cases._case import Case, copy
from vifast.functional import BlurJitterParams, blur_jitter


def _ckda(batch, height, width, device="cpu"):
    """Half of the images infrared, of which every second is blurred and every other jittered (ckda 7)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator).to(device)
    brightness, contrast, sigma = torch.ones(batch), torch.ones(batch), torch.zeros(batch)
    blurred, jittered = torch.arange(batch // 2, batch, 2), torch.arange(batch // 2 + 1, batch, 2)
    brightness[jittered], contrast[jittered] = torch.rand(2, len(jittered), generator=generator) * 0.6 + 0.7
    sigma[blurred] = torch.rand(len(blurred), generator=generator) * 2.9 + 0.1
    params = BlurJitterParams.of(brightness, contrast, sigma).to(device)
    steps = (brightness[jittered], contrast[jittered], sigma[blurred])
    rows = (jittered, blurred)
    on_device = [x.to(device) for x in (*rows, *steps)]
    compiled = torch.compile(rivals.blur_jitter)
    return {
        "vifast": lambda: blur_jitter(images, params),
        "eager": lambda: rivals.blur_jitter(images, *on_device),
        "compile": lambda: compiled(images, *on_device),
        "floor": copy(images),
    } | ({"pillow": lambda: rivals.blur_jitter_pillow(images, *rows, *steps)} if device == "cpu" else {})


CASES = (Case("blur_jitter", ((64, 256, 128), (64, 384, 128)), _ckda),)
