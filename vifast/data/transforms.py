"""Training augmentation and normalisation of one decoded image on the CPU."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
PAD_GREY = 127


def normalize(image: np.ndarray) -> Tensor:
    """uint8 `[H, W, 3]` to float32 `[3, H, W]`: to 0..1, then by the ImageNet mean and deviation of each channel.

    Example:
        >>> normalize(np.zeros((4, 2, 3), np.uint8)).shape
        torch.Size([3, 4, 2])
    """
    scaled = (image * np.float32(1 / 255) - IMAGENET_MEAN) / IMAGENET_STD
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32))


@dataclass(frozen=True)
class Augment:
    """Flip, pad with grey, random crop, channel exchange, normalise, random erasing: the published training transform.

    Args:
        flip: probability of a horizontal flip.
        pad: border in pixels from which the crop of the original size is taken.
        exchange: probability that a visible image shows one of its channels (or their luminance) in all three.
        erase: probability that a rectangle of 2..33 % of the area, aspect 0.3..3.3, is set to 0 after normalisation.

    Raises:
        ValueError: a probability outside 0..1 or a negative pad.
    """

    flip: float = 0.5
    pad: int = 10
    exchange: float = 0.0
    erase: float = 0.5

    def __post_init__(self):
        for name in ("flip", "exchange", "erase"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a probability in 0..1, got {getattr(self, name)!r}")
        if self.pad < 0:
            raise ValueError(f"pad: expected at least 0, got {self.pad!r}")

    def __call__(self, image: np.ndarray, modality: int, rng: np.random.Generator) -> Tensor:
        """uint8 `[H, W, 3]` to normalised float32 `[3, H, W]`; `modality` 0 visible, 1 infrared."""
        height, width, _ = image.shape
        if rng.random() < self.flip:
            image = image[:, ::-1]
        if self.pad:
            border = ((self.pad, self.pad), (self.pad, self.pad), (0, 0))
            top, left = rng.integers(0, 2 * self.pad + 1, 2)
            image = np.pad(image, border, constant_values=PAD_GREY)[top : top + height, left : left + width]
        if rng.random() < self.exchange and modality == 0:
            image = _exchange(image, int(rng.integers(4)))
        out = normalize(image)
        if rng.random() < self.erase:
            _erase(out, rng)
        return out


def _exchange(image: np.ndarray, channel: int) -> np.ndarray:
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32) if channel == 3 else image[..., channel]
    return np.broadcast_to(grey.astype(np.uint8)[..., None], image.shape)


def _erase(image: Tensor, rng: np.random.Generator, tries: int = 10) -> None:
    _, height, width = image.shape
    for _ in range(tries):  # a rectangle that does not fit is drawn again
        area = height * width * rng.uniform(0.02, 0.33)
        aspect = rng.uniform(0.3, 3.3)
        h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if h < height and w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            image[:, top : top + h, left : left + w] = 0.0
            return
