"""Brightness, contrast and Gaussian blur of decoded images, and the records that say how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vifast import _checks
from vifast.kernels import blur_jitter as _op


@dataclass(frozen=True, eq=False)
class BlurJitterParams:
    """What `blur_jitter` does to every image of a batch. `of` makes it from factors and deviations.

    Attributes:
        factors: [B, 2] float32, of brightness and contrast; 1 changes nothing.
        contrast_first: [B] bool, the order of the two.
        taps: [B, R + 1] int32, of the blur at distance 0..R in 2^-22; the middle alone changes nothing.
    """

    factors: Tensor
    contrast_first: Tensor
    taps: Tensor

    @classmethod
    def of(
        cls,
        brightness: Tensor | Sequence[float],
        contrast: Tensor | Sequence[float],
        sigma: Tensor | Sequence[float],
        *,
        contrast_first: Tensor | Sequence[bool] | bool = False,
        kernel_size: int = 21,
    ) -> BlurJitterParams:
        """Records on the CPU, where every device gets its taps from.

        Args:
            brightness: [B] factors, 1 for none.
            contrast: [B] factors, 1 for none.
            sigma: [B] deviations of the blur in pixels, 0 for none.
            contrast_first: [B] or one for all.
            kernel_size: odd, pixels that a blurred one is made of in each direction.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it.
        """
        values = {"brightness": brightness, "contrast": contrast, "sigma": sigma}
        columns = {name: torch.as_tensor(value, dtype=torch.float64, device="cpu") for name, value in values.items()}
        for name, column in columns.items():
            if column.shape != columns["brightness"].shape[:1]:
                expected = "[B]" if name == "brightness" else f"{list(columns['brightness'].shape)} as brightness"
                raise ValueError(f"{name}: expected shape {expected}, got {list(column.shape)}")
            if not ((column >= 0) & (column < torch.inf)).all():
                raise ValueError(f"{name}: expected finite numbers of at least 0, got {column.tolist()}")
        _checks.count("kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        first = torch.as_tensor(contrast_first, dtype=torch.bool, device="cpu")
        if first.dim() > 0 and first.shape != columns["brightness"].shape:
            raise ValueError(f"contrast_first: expected one for each of brightness, got shape {list(first.shape)}")
        factors = torch.stack((columns["brightness"], columns["contrast"]), 1).float()
        taps = _op.gaussian_taps(columns["sigma"], kernel_size // 2)
        return cls(factors, first.expand(len(factors)).contiguous(), taps)

    @classmethod
    def identity(cls, n: int, *, device: torch.device | str | None = None) -> BlurJitterParams:
        """Records for `n` images that stay as they are."""
        return cls.of([1.0] * n, [1.0] * n, [0.0] * n, kernel_size=1).to(device or "cpu")

    def __len__(self) -> int:
        return len(self.factors)

    def __getitem__(self, rows: slice) -> BlurJitterParams:
        return BlurJitterParams(self.factors[rows], self.contrast_first[rows], self.taps[rows])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> BlurJitterParams:
        tensors = (self.factors, self.contrast_first, self.taps)
        return BlurJitterParams(*(x.to(device, non_blocking=non_blocking) for x in tensors))

    @staticmethod
    def cat(parts: Sequence[BlurJitterParams]) -> BlurJitterParams:
        """One batch after another. Taps beyond the radius of some are 0.

        Raises:
            ValueError: no parts.
        """
        if not parts:
            raise ValueError("parts: expected at least one, got none")
        most = max(part.taps.size(1) for part in parts)
        taps = [torch.nn.functional.pad(part.taps, (0, most - part.taps.size(1))) for part in parts]
        factors, first = (torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS[:2])
        return BlurJitterParams(factors, first, torch.cat(taps))


_FIELDS = ("factors", "contrast_first", "taps")


def blur_jitter(images: Tensor, params: BlurJitterParams) -> Tensor:
    """Change brightness and contrast of decoded images as Pillow does, then blur them.

    An image of factors 1 and deviation 0 is copied. Brightness and contrast have the bits of Pillow's ImageEnhance,
    and so of ColorJitter on Pillow images. The blur is the rounded Gaussian of torchvision's GaussianBlur, borders
    reflected; a sum that the exact kernel puts within 2^-9 of a half may round the
    other way, an exact half goes to the even number.

    Args:
        images: [B, H, W, 3] uint8, H and W more than the radius of the blur.
        params: a record an image, of `BlurJitterParams.of`, on the device of the images.

    Returns:
        [B, H, W, 3] uint8. Not differentiable.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: the result. Source: spec ckda 7.

    Example:
        >>> import torch
        >>> image = torch.tensor([[[[100, 150, 200]]]], dtype=torch.uint8)
        >>> blur_jitter(image, BlurJitterParams.of([1.3], [1.0], [0.0], kernel_size=1)).flatten().tolist()
        [130, 195, 255]
    """
    _checks.images("images", images)
    if not isinstance(params, BlurJitterParams):
        raise TypeError(f"params: expected BlurJitterParams, got {type(params).__name__}")
    records = (params.factors, params.contrast_first, params.taps)
    if len(params) != len(images):
        raise ValueError(f"params: expected {len(images)} records as images, got {len(params)}")
    for name, record in zip(_FIELDS, records, strict=True):
        _checks.same_device(name, record, "images", images)
    radius = params.taps.size(1) - 1
    if min(images.shape[1:3]) <= radius:
        size = 2 * radius + 1
        raise ValueError(
            f"images: expected at least {radius + 1} x {radius + 1} pixels for a blur of {size} x {size}, got shape "
            f"{list(images.shape)}"
        )
    return _op.blur_jitter(images, *records)
