"""Random numbers of augmentation: a function of (seed, epoch, sample, purpose), of no order, worker or device.

Philox4x32-10 (Salmon et al. 2011) turns a counter of four words and a key of two into four random words. Here

    key      seed, epoch
    counter  sample (two words, the low one first), slot + 65536 view, attempt

A `Slot` is one decision: what it draws does not depend on which others are made. A loop that rejects counts attempts.
C++ draws the records of a batch (csrc/augment_draws.h); what is here in NumPy is the definition.
"""

import enum

import numpy as np

from vifast.functional.augment import AugmentParams
from vifast.kernels import _C
from vifast.kernels._philox import philox as _philox
from vifast.kernels.augment import ERASED, NORMALIZED, ONE, RAW


class Slot(enum.IntEnum):
    """The decisions about an image. A number is never used again for another: runs of old seeds would change."""

    FLIP = 0
    CROP = 1
    CUTSWAP = 2
    CUTSWAP_BOX = 3
    EXCHANGE = 4
    ERASE = 5
    ERASE_BOX = 6
    CUTMIX = 7
    CUTMIX_BOX = 8
    MIXUP = 9
    MIXUP_WEIGHT = 10
    BLUR_JITTER = 11
    BLUR = 12
    JITTER = 13
    CHANNEL = 14


_MASK = np.uint64(0xFFFFFFFF)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Four random words for every counter `[..., 4]`: uint32 `[..., 4]`."""
    with np.errstate(over="ignore"):
        return np.stack(_philox(np.moveaxis(counter.astype(np.int64), -1, 0), key), -1).astype(np.uint32)


def words(index: np.ndarray, slot: int, *, seed: int, epoch: int, view: int = 0, attempt: int = 0) -> np.ndarray:
    """Four random words for every sample of `index` `[B]`: uint32 `[B, 4]`."""
    index = np.asarray(index).astype(np.uint64)
    counter = np.zeros((len(index), 4), np.uint64)
    counter[:, 0], counter[:, 1] = index & _MASK, index >> np.uint64(32)
    counter[:, 2], counter[:, 3] = slot + 65536 * view, attempt
    return philox(counter, (seed, epoch))


def unit(word: np.ndarray) -> np.ndarray:
    """Uniform in [0, 1), a multiple of 2^-24."""
    return (word >> np.uint32(8)) * 2.0**-24


def between(word: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Uniform in [low, high). Low end and width are float32: an exact product, so that fusing it changes nothing."""
    width = (np.asarray(high) - low).astype(np.float32)
    return np.asarray(low).astype(np.float32).astype(np.float64) + width.astype(np.float64) * unit(word)


def below(word: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Uniform in 0..n-1: one of n <= 2^31 parts of 2^32 that differ by one at most."""
    return ((word.astype(np.uint64) * np.asarray(n).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def channels(index: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """One of the channels 0..2 for every sample, each as likely: int64 `[B]`."""
    return below(words(index, Slot.CHANNEL, seed=seed, epoch=epoch)[:, 0], 3)


#: Columns of the options of one modality, in the order of `DrawOptions` in csrc/augment_draws.h. `swap_fill` is 0 for a
#: channel, 1 for the luminance, 2 for a permutation.
OPTIONS = (
    "flip", "pad",
    "swap", "swap_low", "swap_high", "swap_image", "swap_fill", "swap_outside", "swap_raw",
    "channel", "gray",
    "cutmix", "cutmix_mean", "cutmix_std", "cutmix_low", "cutmix_high",
    "mixup", "mixup_alpha", "mixup_low", "mixup_high",
    "erase", "area_low", "area_high", "aspect_low", "aspect_high", "tries",
)  # fmt: skip
_PERMUTATIONS = np.array([[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])  # all but the identity
MIXUP_TRIES = 100


def draw_ref(
    index: np.ndarray,
    modality: np.ndarray,
    options: np.ndarray,
    size: tuple[int, int],
    *,
    seed: int,
    epoch: int,
    view: int,
) -> np.ndarray:
    """Records int32 `[B, 22]` of samples by the options `[2, len(OPTIONS)]` of their modality, without partners."""
    height, width = size
    o = dict(zip(OPTIONS, np.asarray(options)[modality].T, strict=True))
    r = {name: np.zeros(len(index), np.int64) for name in AugmentParams.COLUMNS}

    def draw(slot, attempt=0):
        return words(index, slot, seed=seed, epoch=epoch, view=view, attempt=attempt).T

    def put(rows, **values):
        for name, value in values.items():
            r[name] = np.where(rows, value, r[name])

    def put_box(rows, box, top, left, height, width):
        put(rows, **{f"{box}_top": top, f"{box}_left": left, f"{box}_height": height, f"{box}_width": width})

    put(unit(draw(Slot.FLIP)[0]) < o["flip"], flip=1)
    w = draw(Slot.CROP)
    put(True, dy=below(w[0], 2 * o["pad"] + 1) - o["pad"], dx=below(w[1], 2 * o["pad"] + 1) - o["pad"])

    w, place = draw(Slot.CUTSWAP), draw(Slot.CUTSWAP_BOX)
    h, v = (np.floor(n * between(word, o["swap_low"], o["swap_high"])) for n, word in ((height, w[2]), (width, w[3])))
    swap = (unit(w[0]) < o["swap"]) & (h > 0) & (v > 0)
    shown = np.stack([below(w[1], 3)] * 3, 1)
    shown = np.where(o["swap_fill"][:, None] == 1, 3, shown)
    shown = np.where(o["swap_fill"][:, None] == 2, _PERMUTATIONS[below(w[1], 5)], shown)
    put(swap, red=shown[:, 0], green=shown[:, 1], blue=shown[:, 2])
    put(swap, stage=np.where(o["swap_raw"] == 1, RAW, NORMALIZED), outside=o["swap_outside"])
    put_box(swap, "color", below(place[0], height - h + 1), below(place[1], width - v + 1), h, v)
    put(swap & (o["swap_image"] == 1), color_top=0, color_left=0, color_height=height, color_width=width, outside=0)

    w = draw(Slot.EXCHANGE)
    u = unit(w[0])
    source = np.where(u < o["channel"], below(w[1], 3), 3)
    exchange = u < o["channel"] + o["gray"]
    put(exchange, red=source, green=source, blue=source, stage=ERASED)
    put_box(exchange, "color", 0, 0, height, width)

    w, place = draw(Slot.CUTMIX), draw(Slot.CUTMIX_BOX)
    bell = (np.sqrt(-2 * np.log(1 - unit(w[1]))) * np.cos(2 * np.pi * unit(w[2]))).astype(np.float32)
    mean, deviation = (o[f"cutmix_{name}"].astype(np.float32).astype(np.float64) for name in ("mean", "std"))
    ratio = np.clip(mean + deviation * bell, o["cutmix_low"], o["cutmix_high"])
    bounds = []
    for n, word in ((height, place[0]), (width, place[1])):
        half = np.floor(n * ratio) // 2
        center = below(word, n)
        bounds.append((np.maximum(center - half, 0), np.minimum(center + half, n)))
    (top, bottom), (left, right) = bounds
    put_box(unit(w[0]) < o["cutmix"], "mix", top, left, bottom - top, right - left)

    weight, open_ = np.full(len(index), 0.5), np.ones(len(index), bool)
    for attempt in range(MIXUP_TRIES):  # Joehnk: a beta variate from two powers whose sum is at most 1
        w = draw(Slot.MIXUP_WEIGHT, attempt)
        a, b = (unit(word) ** (1 / o["mixup_alpha"]) for word in w[:2])
        hit = open_ & (a + b <= 1) & (a + b > 0)
        weight, open_ = np.where(hit, a / np.where(hit, a + b, 1), weight), open_ & ~hit
        if not open_.any():
            break
    mixup = unit(draw(Slot.MIXUP)[0]) < o["mixup"]
    put(mixup, weight=np.rint(np.clip(weight, o["mixup_low"], o["mixup_high"]) * ONE))
    put_box(mixup, "mix", 0, 0, height, width)

    open_ = unit(draw(Slot.ERASE)[0]) < o["erase"]
    for attempt in range(int(o["tries"].max(initial=0))):
        w = draw(Slot.ERASE_BOX, attempt)
        area = height * width * between(w[0], o["area_low"], o["area_high"])
        aspect = between(w[1], o["aspect_low"], o["aspect_high"])
        h, v = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        hit = open_ & (h < height) & (v < width) & (attempt < o["tries"])
        place = below(w[2], np.maximum(height - h, 0) + 1), below(w[3], np.maximum(width - v, 0) + 1)
        put_box(hit, "erase", *place, h, v)
        open_ &= ~hit
        if not open_.any():
            break
    return np.stack([r[name] for name in AugmentParams.COLUMNS], 1).astype(np.int32)


def draw(
    index: np.ndarray,
    modality: np.ndarray,
    options: np.ndarray,
    size: tuple[int, int],
    *,
    seed: int,
    epoch: int,
    view: int,
) -> np.ndarray:
    """The same by C++."""
    records = np.empty((len(index), len(AugmentParams.COLUMNS)), np.int32)
    index, modality = (np.ascontiguousarray(values, np.int64) for values in (index, modality))
    _C.draw_augment(index, modality, options, *size, seed, epoch, view, records)
    return records
