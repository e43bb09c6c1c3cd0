"""resize: 8-bit RGB images of any sizes to one size, with the bits of Pillow's filters.

Along a line, output k of n is the weighted mean of the inputs around its centre (k + 1/2) s, where s = inputs / n, with
weights f((i + 1/2 - centre) / max(s, 1)), f the triangle (`bilinear`) or sinc(x) sinc(x / 3) (`lanczos`): where it
shrinks the filter grows with it, which is what "antialias" means elsewhere. Weights are rounded to 1 / 2**22, sums are
whole numbers, rounded to 0..255: first along every row, then along every column.

Shapes   images [h, w, 3] uint8 of any h and w; out [B, H, W, 3] uint8.
Memory   one image of [h, W, 3].
Source   Pillow's ``Image.resize``, up to version 12. Version 13 does columns first where the height shrinks: values
         move by 1 at most, by more where Lanczos overshoots 0..255, which is cut off between the two.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vifast import _checks
from vifast.kernels import _C

RESAMPLE = ("bilinear", "lanczos")
_ONE = 1 << 22


def resize_ref(image: NDArray[np.uint8], size: tuple[int, int], resample: str) -> NDArray[np.uint8]:
    """The definition, for one image."""
    height, width = size
    rows = _line(image.astype(np.int64), _weights(image.shape[1], width, resample), axis=1)
    return _line(rows, _weights(image.shape[0], height, resample), axis=0).astype(np.uint8)


def _weights(inputs: int, outputs: int, resample: str) -> NDArray[np.int64]:
    """[outputs, inputs] in 1 / 2**22."""
    step = inputs / outputs
    stretch = max(step, 1.0)
    reach = (3 if resample == "lanczos" else 1) * stretch
    weights = np.zeros((outputs, inputs), np.int64)
    for row, center in zip(weights, (np.arange(outputs) + 0.5) * step, strict=True):
        near = slice(max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), inputs))
        share = [_filter((i - center + 0.5) / stretch, resample) for i in range(near.start, near.stop)]
        row[near] = [math.floor(abs(w) / sum(share) * _ONE + 0.5) * math.copysign(1, w) for w in share]
    return weights


def _filter(x: float, resample: str) -> float:
    if resample == "lanczos":
        return float(np.sinc(x) * np.sinc(x / 3)) if -3 <= x < 3 else 0.0
    return max(0.0, 1.0 - abs(x))


def _line(image: NDArray[np.int64], weights: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
    if image.shape[axis] == len(weights):
        return image
    sums = np.moveaxis(np.tensordot(weights, image, axes=(1, axis)), 0, axis)
    return ((sums + _ONE // 2) >> 22).clip(0, 255)


def check_size(size: tuple[int, int], resample: str) -> None:
    """Raises ValueError or TypeError where :func:`resize` would."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (height, width) in pixels, got {size!r}")
    _checks.one_of("resample", resample, RESAMPLE)


def resize(
    images: Sequence, size: tuple[int, int], resample: str = "bilinear", *, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """`[B, H, W, 3]` from arrays or tensors `[h, w, 3]`, all uint8, on the CPU; `size` is (height, width).

    Runs in the calling thread and releases the interpreter.

    Raises:
        ValueError, TypeError: an image, `size`, `resample` or `out` is not as above.

    Example:
        >>> resize([np.array([[[0, 0, 9]], [[8, 0, 9]]], np.uint8)], (1, 1))[0, 0, 0].tolist()
        [4, 0, 9]
    """
    check_size(size, resample)
    shape = (len(images), *size, 3)
    out = np.empty(shape, np.uint8) if out is None else out
    if tuple(out.shape) != shape:
        raise ValueError(f"out: expected shape {list(shape)}, got {list(out.shape)}")
    _C.resize_images(images, resample == "lanczos", out)
    return out
