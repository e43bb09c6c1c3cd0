"""Training augmentation: what may happen to an image, with which probability, in which modality.

`Augment` is what a configuration holds; its `draw` turns samples into the records that `vifast.functional.augment`
applies. Probabilities are of an image; modalities are ``v`` visible and ``i`` infrared.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vifast import _checks
from vifast.data import draws
from vifast.data.blur_jitter import BlurJitter
from vifast.data.records import INFRARED, VISIBLE
from vifast.functional.augment import AugmentParams

Modality = Literal["v", "i"]
_MODALITIES = ("v", "i")  # in the order of their numbers


def _range(name: str, value: tuple[float, float], least: float, most: float) -> None:
    low, high = _checks.number_list(name, value, lambda item, number: _checks.within(item, number, least, most), 2)
    if low > high:
        raise ValueError(f"{name}: expected a rising range, got {value}")


@dataclass(frozen=True)
class CutSwap:
    """One channel in place of all three, in a random box of an image, before erasing (dakd 8.1).

    Args:
        p: probability.
        ratio: range of the box's height and width, as shares of the image's; uniform and independent.
        scope: the box, or the whole image, as the released code does.
        fill: the box shows one of the channels, the luminance, or the channels in one of the five other orders.
        invert: outside the box in place of inside.
        stage: of normalised values, by mean and std of the channel that is shown, or of the raw ones.
        modalities: to which it is done.
    """

    p: float = 0.5
    ratio: tuple[float, float] = (0.3, 0.6)
    scope: Literal["region", "image"] = "region"
    fill: Literal["channel", "gray", "permute"] = "channel"
    invert: bool = False
    stage: Literal["normalized", "raw"] = "normalized"
    modalities: tuple[Modality, ...] = ("v",)

    def __post_init__(self):
        _checks.within("cutswap.p", self.p, 0, 1)
        _range("cutswap.ratio", self.ratio, 0, 1)
        _checks.one_of("cutswap.scope", self.scope, ("region", "image"))
        _checks.one_of("cutswap.fill", self.fill, ("channel", "gray", "permute"))
        _checks.flag("cutswap.invert", self.invert)
        _checks.one_of("cutswap.stage", self.stage, ("normalized", "raw"))
        _checks.some_of("cutswap.modalities", self.modalities, _MODALITIES)


@dataclass(frozen=True)
class Exchange:
    """All of an image in one channel or in its luminance, after erasing (CAJ; dakd 8.3).

    Args:
        channel: probability that one of the channels, each as likely, is shown in all three.
        gray: probability that the luminance is; together at most 1.
    """

    channel: float = 0.0
    gray: float = 0.0

    def __post_init__(self):
        for name in ("channel", "gray"):
            _checks.within(f"exchange.{name}", getattr(self, name), 0, 1)
        _checks.within("exchange: channel + gray", self.channel + self.gray, 0, 1)


@dataclass(frozen=True)
class CutMix:
    """A box of the same identity's image in the other modality (dakd 8.1), before CutSwap and erasing.

    The box has one share of height and width, normal around `mean`, kept in `limits`; its centre is uniform, its part
    in the image is taken.
    """

    p: float = 0.5
    mean: float = 0.7
    std: float = 0.3
    limits: tuple[float, float] = (0.1, 0.9)
    modalities: tuple[Modality, ...] = ("v",)

    def __post_init__(self):
        _checks.within("cutmix_cross.p", self.p, 0, 1)
        _checks.within("cutmix_cross.mean", self.mean, 0, 1)
        _checks.non_negative("cutmix_cross.std", self.std)
        _range("cutmix_cross.limits", self.limits, 0, 1)
        _checks.some_of("cutmix_cross.modalities", self.modalities, _MODALITIES)


@dataclass(frozen=True)
class MixUp:
    """A blend with the same identity's image in the other modality, its own weight Beta(alpha, alpha) in `limits`."""

    p: float = 0.5
    alpha: float = 1.2
    limits: tuple[float, float] = (0.2, 0.8)
    modalities: tuple[Modality, ...] = ("v",)

    def __post_init__(self):
        _checks.within("mixup_cross.p", self.p, 0, 1)
        _checks.positive("mixup_cross.alpha", self.alpha)
        _range("mixup_cross.limits", self.limits, 0, 1)
        _checks.some_of("mixup_cross.modalities", self.modalities, _MODALITIES)


@dataclass(frozen=True)
class Erase:
    """A random rectangle gets one colour, after normalisation (dakd 8.2).

    Args:
        p: probability.
        area: range of the area as a share of the image's, uniform.
        aspect: range of height / width, uniform.
        tries: rectangles drawn until one is smaller than the image both ways; none is erased if all are too large.
        fill: the colour, in normalised units.
    """

    p: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    tries: int = 100
    fill: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)

    def __post_init__(self):
        _checks.within("erase.p", self.p, 0, 1)
        _range("erase.area", self.area, 0, 1)
        _checks.positive("erase.aspect[0]", self.aspect[0])
        _range("erase.aspect", self.aspect, 0, float("inf"))
        _checks.count("erase.tries", self.tries)
        _checks.number_list("erase.fill", self.fill, _checks.number, 3)


@dataclass(frozen=True)
class Augment:
    """Blur or jitter, crop, flip, CutMix or MixUp, CutSwap, erase, exchange: in this order.

    Only crop and flip are on by themselves.

    An image has one change of colour and one partner at most: CutSwap and exchange, or CutMix and MixUp, in one
    modality are refused.

    Args:
        flip: probability of a horizontal flip.
        pad: border in pixels from which the crop of the original size is taken, at a uniform place.
        pad_value: 0..255, of the border.
        blur_jitter, cutswap, cutmix_cross, mixup_cross, erase: see there.
        exchange_visible, exchange_infrared: of each modality, see `Exchange`.

    Raises:
        ValueError: a value out of range; the message names it.

    Example:
        >>> policy = Augment.preset("dakd", cutswap=CutSwap(scope="image"))
        >>> params = policy.draw([7, 8], [0, 1], (384, 128), seed=0, epoch=3)
        >>> len(params), params.fill
        (2, (0.4914, 0.4822, 0.4465))
    """

    flip: float = 0.5
    pad: int = 10
    pad_value: int = 0
    cutswap: CutSwap = CutSwap(p=0.0)
    cutmix_cross: CutMix = CutMix(p=0.0)
    mixup_cross: MixUp = MixUp(p=0.0)
    erase: Erase = Erase(p=0.0)
    exchange_visible: Exchange = Exchange()
    exchange_infrared: Exchange = Exchange()
    blur_jitter: BlurJitter = BlurJitter(p=0.0)  # noqa: RUF009 - it is frozen

    PRESETS: ClassVar[tuple[str, ...]] = ("agw", "caj", "idkl", "mce", "dakd", "dakd-regdb", "ckda")

    def __post_init__(self):
        _checks.within("flip", self.flip, 0, 1)
        _checks.count("pad", self.pad, 0)
        _checks.count("pad_value", self.pad_value, 0)
        _checks.within("pad_value", self.pad_value, 0, 255)
        for name, o in zip(_MODALITIES, self._options(), strict=True):
            for one, other in ((("cutswap", o["swap"]), ("exchange", o["channel"] + o["gray"])),
                               (("cutmix_cross", o["cutmix"]), ("mixup_cross", o["mixup"]))):  # fmt: skip
                if one[1] > 0 and other[1] > 0:
                    raise ValueError(f"{one[0]}: expected p 0 in modality {name!r}, which has {other[0]}, got {one[1]}")

    @staticmethod
    def preset(name: str, **changes) -> "Augment":
        """A published pipeline by its name, one of `PRESETS`, with `changes` of its fields.

        Raises:
            ValueError: no such preset, or a value out of range.
        """
        _checks.one_of("preset", name, Augment.PRESETS)
        return replace(_PRESETS[name](), **changes)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with partners, which `draw` must then be told."""
        return max(self.cutmix_cross.p, self.mixup_cross.p) > 0

    def draw(
        self,
        index: Tensor | np.ndarray | list[int],
        modality: Tensor | np.ndarray | list[int],
        size: tuple[int, int],
        *,
        seed: int,
        epoch: int,
        view: int = 0,
        partner: Tensor | np.ndarray | list[int] | None = None,
    ) -> AugmentParams:
        """The records of a batch, the same for a sample whatever it is batched with.

        Args:
            index: [B] number of every sample in its dataset.
            modality: [B], 0 visible, 1 infrared.
            size: (height, width) of the images.
            seed: 0..2^32-1, of the run.
            epoch: 0..2^32-1.
            view: 0..65535; another gives other records of the same samples.
            partner: [B] row in the batch of an image of the same identity in the other modality, or the image's own
                row where there is none (see `partners`); for CutMix and MixUp.

        Raises:
            ValueError: an argument out of range, or no `partner` for a policy that mixes.
        """
        index, modality = (np.asarray(value, np.int64) for value in (index, modality))
        if index.ndim != 1 or modality.shape != index.shape:
            raise ValueError(f"modality: expected one for each of index, got shapes {modality.shape} and {index.shape}")
        if index.size and index.min() < 0:
            raise ValueError(f"index: expected at least 0, got {index.min()}")
        if not np.isin(modality, (VISIBLE, INFRARED)).all():
            raise ValueError(f"modality: expected {VISIBLE} visible or {INFRARED} infrared, got {modality.tolist()}")
        for name, value, most in (("seed", seed, 2**32 - 1), ("epoch", epoch, 2**32 - 1), ("view", view, 65535)):
            _checks.count(name, value, 0)
            _checks.within(name, value, 0, most)
        for name, value in zip(("height", "width"), size, strict=True):
            _checks.count(f"size: {name}", value)
        if self.mixes and partner is None:
            raise ValueError("partner: expected a row for every image, as cutmix_cross or mixup_cross is on, got None")
        records = draws.draw(index, modality, self._table, tuple(size), seed=seed, epoch=epoch, view=view)
        params = AugmentParams(torch.from_numpy(records), fill=tuple(self.erase.fill), pad=self.pad_value)
        if self.blur_jitter.p > 0:
            params = replace(
                params, blur_jitter=self.blur_jitter.draw(index, modality, seed=seed, epoch=epoch, view=view)
            )
        if self.mixes:
            rows = torch.as_tensor(np.asarray(partner), dtype=torch.int32)
            if rows.shape != (len(index),):
                raise ValueError(f"partner: expected one for each of index, got shape {list(rows.shape)}")
            mixed = params.column("mix_height") > 0
            params.column("partner")[:] = torch.where(mixed, rows - torch.arange(len(index), dtype=torch.int32), 0)
        return params

    @functools.cached_property
    def _table(self) -> np.ndarray:
        return np.array([[o[name] for name in draws.OPTIONS] for o in self._options()], np.float64)

    def _options(self) -> list[dict[str, float]]:
        """`draws.OPTIONS` of both modalities."""

        def p(part, modality):
            return part.p if modality in part.modalities else 0.0

        swap, cutmix, mixup, erase = self.cutswap, self.cutmix_cross, self.mixup_cross, self.erase
        return [
            {
                "flip": self.flip, "pad": self.pad,
                "swap": p(swap, m), "swap_low": swap.ratio[0], "swap_high": swap.ratio[1],
                "swap_image": swap.scope == "image", "swap_fill": ("channel", "gray", "permute").index(swap.fill),
                "swap_outside": swap.invert, "swap_raw": swap.stage == "raw",
                "channel": exchange.channel, "gray": exchange.gray,
                "cutmix": p(cutmix, m), "cutmix_mean": cutmix.mean, "cutmix_std": cutmix.std,
                "cutmix_low": cutmix.limits[0], "cutmix_high": cutmix.limits[1],
                "mixup": p(mixup, m), "mixup_alpha": mixup.alpha,
                "mixup_low": mixup.limits[0], "mixup_high": mixup.limits[1],
                "erase": erase.p, "area_low": erase.area[0], "area_high": erase.area[1],
                "aspect_low": erase.aspect[0], "aspect_high": erase.aspect[1], "tries": erase.tries,
            }
            for m, exchange in zip(_MODALITIES, (self.exchange_visible, self.exchange_infrared), strict=True)
        ]  # fmt: skip


_CAJ_INFRARED = Exchange(channel=0.75, gray=0.125)  # dakd 8.3: a fourth draw is luminance or nothing, equally often
_PRESETS: dict[str, Callable[[], Augment]] = {
    # Zero-pad, crop, flip: the geometry of dakd 8 alone.
    "agw": Augment,
    # dakd 8.2, 8.3; of the two visible views of stage A, plain and one channel (dakd 3), each half of the time.
    "caj": lambda: Augment(erase=Erase(), exchange_visible=Exchange(channel=0.5), exchange_infrared=_CAJ_INFRARED),
    # idkl 8.
    "idkl": lambda: Augment(
        pad_value=127, erase=Erase(area=(0.02, 0.33), aspect=(0.3, 3.3), tries=10, fill=(0.0, 0.0, 0.0))
    ),
    # dakd 3; the loader makes the auxiliary view.
    "mce": lambda: Augment(erase=Erase(), exchange_infrared=_CAJ_INFRARED),
    # dakd 8, SYSU-MM01.
    "dakd": lambda: Augment(cutswap=CutSwap(), erase=Erase(), exchange_infrared=_CAJ_INFRARED),
    # dakd 8, RegDB.
    "dakd-regdb": lambda: Augment(pad_value=127, erase=Erase()),
    # ckda 7.
    "ckda": lambda: Augment(pad=0, blur_jitter=BlurJitter(), erase=Erase(fill=(0.485, 0.456, 0.406))),
}


def partners(labels: Tensor | np.ndarray, modality: Tensor | np.ndarray) -> np.ndarray:
    """For every image the row of one of the same identity in the other modality, [B].

    The k-th of an identity gets the k-th of the other modality, from the first again where there are fewer; its own row
    where there is none.

    Example:
        >>> partners(np.array([4, 4, 4, 9]), np.array([0, 0, 1, 0])).tolist()
        [2, 2, 0, 3]
    """
    labels, modality = np.asarray(labels), np.asarray(modality)
    rows = np.arange(len(labels))
    out = rows.copy()
    for label in np.unique(labels):
        sides = [rows[(labels == label) & (modality == m)] for m in (VISIBLE, INFRARED)]
        for own, other in (sides, sides[::-1]):
            if len(other):
                out[own] = other[np.arange(len(own)) % len(other)]
    return out
