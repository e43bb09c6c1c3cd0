"""Ops on decoded images, whose floor is to read their bytes and to write the result's."""

import rivals
import torch

from cases._case import Case, by_definition, copy
from vifast.data import Augment
from vifast.functional import AugmentParams, BlurJitterParams, augment, blur_jitter
from vifast.kernels import _C


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


def _augment(dtype):
    def build(batch, height, width, device="cpu"):
        """DAKD's pipeline on a batch, half of it infrared."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
        index = torch.arange(batch)
        params = Augment.preset("dakd").draw(index, index % 2, (height, width), seed=0, epoch=0)
        columns = {name: params.column(name).to(device) for name in AugmentParams.COLUMNS}
        constants = params.mean, params.std, params.fill
        on_device, params = images.to(device), params.to(device)

        def ours():
            return augment(on_device, params, dtype=dtype)

        def eager():
            return rivals.augment(on_device, columns, constants).to(dtype)

        def floor():
            """Into new memory and huge pages, as ours."""
            out = torch.empty(images.shape, dtype=dtype, device=device)
            if device == "cpu":
                _C.prefer_huge_pages(out.view(-1).view(torch.float32))
            head, rest = out.view(torch.uint8).view(-1).split((images.numel(), (dtype.itemsize - 1) * images.numel()))
            head.copy_(on_device.view(-1))
            rest.zero_()

        pillow = {"pillow": lambda: rivals.augment_pillow(images, columns, constants).to(dtype)}
        return {
            "vifast": ours,
            "definition": by_definition(ours),
            "eager": eager,
            "compile": torch.compile(eager),
            "floor": floor,
        } | (pillow if device == "cpu" else {})

    return build


CASES = (
    Case("augment", ((64, 384, 128), (64, 288, 144)), _augment(torch.float32)),
    Case("augment_bfloat16", ((64, 384, 128),), _augment(torch.bfloat16)),
    Case("blur_jitter", ((64, 256, 128), (64, 384, 128)), _ckda),
)
