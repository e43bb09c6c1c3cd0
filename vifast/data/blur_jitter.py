"""Blur or jitter of decoded images: how likely and how much, and the draw of a batch's records."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vifast import _checks
from vifast.data import draws
from vifast.functional.blur_jitter import BlurJitterParams


@dataclass(frozen=True)
class BlurJitter:
    """One of a Gaussian blur and a jitter of brightness and contrast, before all other steps (ckda 7).

    Args:
        p: probability that one of the two is done.
        blur: the blur's share of it; the rest is the jitter's.
        sigma: range of the blur's deviation in pixels, uniform.
        kernel_size: odd, pixels in each direction that a blurred one is made of.
        brightness: factors are uniform in 1 - brightness .. 1 + brightness.
        contrast: likewise; either comes first as often.
        modalities: to which it is done.
    """

    p: float = 1.0
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 3.0)
    kernel_size: int = 21
    brightness: float = 0.3
    contrast: float = 0.3
    modalities: tuple[Literal["v", "i"], ...] = ("i",)

    def __post_init__(self):
        for name in ("p", "blur", "brightness", "contrast"):
            _checks.within(f"blur_jitter.{name}", getattr(self, name), 0, 1)
        low, high = _checks.number_list("blur_jitter.sigma", self.sigma, _checks.non_negative, 2)
        if low > high:
            raise ValueError(f"blur_jitter.sigma: expected a rising range, got {self.sigma}")
        _checks.count("blur_jitter.kernel_size", self.kernel_size)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"blur_jitter.kernel_size: expected an odd number, got {self.kernel_size}")
        _checks.some_of("blur_jitter.modalities", self.modalities, ("v", "i"))

    def draw(
        self, index: np.ndarray, modality: np.ndarray, *, seed: int, epoch: int, view: int = 0
    ) -> BlurJitterParams:
        """The records of samples `index` [B] of `modality` [B], the same for a sample whatever it is batched with."""

        def draw(slot):
            return draws.words(index, slot, seed=seed, epoch=epoch, view=view).T

        choice = draw(draws.Slot.BLUR_JITTER)
        taken = np.array([name in self.modalities for name in ("v", "i")])[modality]
        taken &= draws.unit(choice[0]) < self.p
        blurred = draws.unit(choice[1]) < self.blur
        sigma = draws.between(draw(draws.Slot.BLUR)[0], *self.sigma)
        words = draw(draws.Slot.JITTER)
        factors = (
            draws.between(word, 1 - width, 1 + width)
            for word, width in zip(words, (self.brightness, self.contrast), strict=False)
        )
        brightness, contrast = (np.where(taken & ~blurred, factor, 1.0) for factor in factors)
        return BlurJitterParams.of(
            brightness,
            contrast,
            np.where(taken & blurred, sigma, 0.0),
            contrast_first=draws.below(words[2], 2) == 1,
            kernel_size=self.kernel_size,
        )
