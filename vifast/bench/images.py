"""Ops on decoded images, whose floor is to read their bytes and to write the result's."""

from functools import partial

import torch

from vifast.bench.case import Case, Work, copy
from vifast.data import Augment
from vifast.functional import BlurJitterParams, augment, blur_jitter
from vifast.kernels import _C


def _images(batch, height, width):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


def drawn_ckda(batch):
    """(brightness, contrast, sigma) of a batch, half of it infrared, and its (jittered, blurred) rows: of the infrared
    images every second is blurred and every other jittered (ckda 7)."""
    generator = torch.Generator().manual_seed(0)
    brightness, contrast, sigma = torch.ones(batch), torch.ones(batch), torch.zeros(batch)
    blurred, jittered = torch.arange(batch // 2, batch, 2), torch.arange(batch // 2 + 1, batch, 2)
    brightness[jittered], contrast[jittered] = torch.rand(2, len(jittered), generator=generator) * 0.6 + 0.7
    sigma[blurred] = torch.rand(len(blurred), generator=generator) * 2.9 + 0.1
    return (brightness, contrast, sigma), (jittered, blurred)


def _blur_jitter(batch, height, width, device="cpu", dtype=None):
    images = _images(batch, height, width).to(device)
    return Work(blur_jitter, (images, BlurJitterParams.of(*drawn_ckda(batch)[0]).to(device)), (copy(images),))


def _augment(batch, height, width, device="cpu", dtype=torch.float32):
    """DAKD's pipeline on a batch, half of it infrared."""
    images = _images(batch, height, width).to(device)
    index = torch.arange(batch)
    params = Augment.preset("dakd").draw(index, index % 2, (height, width), seed=0, epoch=0).to(device)

    def floor():
        """Into new memory and huge pages, as ours."""
        out = torch.empty(images.shape, dtype=dtype, device=device)
        if device == "cpu":
            _C.prefer_huge_pages(out.view(-1).view(torch.float32))
        head, rest = out.view(torch.uint8).view(-1).split((images.numel(), (dtype.itemsize - 1) * images.numel()))
        head.copy_(images.view(-1))
        rest.zero_()

    return Work(partial(augment, dtype=dtype), (images, params), (floor,))


CASES = (
    Case("augment", ((64, 384, 128), (64, 288, 144)), _augment),
    Case("blur_jitter", ((64, 256, 128), (64, 384, 128)), _blur_jitter),
)
