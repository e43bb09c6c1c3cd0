"""One pass from decoded images to the network's input, and the records that say how."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vifast import _checks
from vifast.functional.blur_jitter import BlurJitterParams, blur_jitter
from vifast.kernels import augment as _op

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class AugmentParams:
    """What `augment` does to every image of a batch, and the constants they share.

    Attributes:
        records: [B, 22] int32, the columns of `AugmentParams.COLUMNS`; `vifast.kernels.augment` says what each does.
            All zeros only normalise.
        mean: of the channels, in 0..1.
        std: > 0, of the channels.
        fill: of erased boxes, in normalised units.
        pad: value 0..255 outside the image.
        blur_jitter: what is done to the images before, if anything.
    """

    COLUMNS = _op.COLUMNS

    records: Tensor
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    fill: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pad: int = 0
    blur_jitter: BlurJitterParams | None = None

    @classmethod
    def identity(cls, n: int, *, device: torch.device | str | None = None) -> AugmentParams:
        """Records for `n` images that are only normalised."""
        return cls(torch.zeros(n, len(cls.COLUMNS), dtype=torch.int32, device=device))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, rows: slice) -> AugmentParams:
        """The records of consecutive images. A partner is counted from its image, so it must be among them."""
        before = None if self.blur_jitter is None else self.blur_jitter[rows]
        return replace(self, records=self.records[rows], blur_jitter=before)

    def column(self, name: str) -> Tensor:
        """[B] int32, a view: writing to it changes the records."""
        return self.records[:, self.COLUMNS.index(name)]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> AugmentParams:
        before = None if self.blur_jitter is None else self.blur_jitter.to(device, non_blocking=non_blocking)
        return replace(self, records=self.records.to(device, non_blocking=non_blocking), blur_jitter=before)

    @staticmethod
    def cat(parts: Sequence[AugmentParams]) -> AugmentParams:
        """One batch after another.

        Raises:
            ValueError: none, or of different constants.
        """
        if not parts:
            raise ValueError("parts: expected at least one, got none")
        first = parts[0]
        for k, part in enumerate(parts):
            for name in ("mean", "std", "fill", "pad"):
                if getattr(part, name) != getattr(first, name):
                    wanted, got = getattr(first, name), getattr(part, name)
                    raise ValueError(f"parts[{k}].{name}: expected {wanted} as in parts[0], got {got}")
        before = None
        if any(part.blur_jitter is not None for part in parts):
            before = BlurJitterParams.cat([part.blur_jitter or _unchanged(part) for part in parts])
        return replace(first, records=torch.cat([part.records for part in parts]), blur_jitter=before)


def _unchanged(params: AugmentParams) -> BlurJitterParams:
    return BlurJitterParams.identity(len(params), device=params.records.device)


def augment(
    images: Tensor, params: AugmentParams, *, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> Tensor:
    """Crop, flip, mix, exchange channels, erase and normalise a batch of decoded images in one pass.

    Where `params.blur_jitter` is set, `blur_jitter` is done to the images first.

    Args:
        images: [B, H, W, 3] uint8.
        params: a record an image, of `vifast.data.Augment.draw`, or `AugmentParams.identity(B)` to normalise only.
        dtype: float32, bfloat16 or float16 of the result.
        channels_last: layout of the result.

    Returns:
        [B, 3, H, W], contiguous or channels-last. Not differentiable.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it. A record out of range is found on
            the CPU only: on a GPU, where looking would wait for the device, it is clamped.

    Memory: the result.
    Source: specs dakd 8, idkl 8, ckda 7.

    Example:
        >>> import torch
        >>> image = torch.tensor([[[[0, 0, 0], [255, 255, 255]]]], dtype=torch.uint8)
        >>> params = AugmentParams.identity(1)
        >>> params.column("flip")[:] = 1
        >>> [round(v, 3) for v in augment(image, params)[0, 0, 0].tolist()]
        [2.249, -2.118]
    """
    _checks.images("images", images)
    if not isinstance(params, AugmentParams):
        raise TypeError(f"params: expected AugmentParams, got {type(params).__name__}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {dtype}")
    _check_params(params, images)
    if params.blur_jitter is not None:
        images = blur_jitter(images, params.blur_jitter)
    constants = (params.mean, params.std, params.fill)
    return _op.augment(images, params.records, *map(list, constants), params.pad, dtype, bool(channels_last))


def _check_params(params: AugmentParams, images: Tensor) -> None:
    for name in ("mean", "std", "fill"):
        _checks.number_list(name, getattr(params, name), _checks.positive if name == "std" else _checks.number, 3)
    _checks.count("pad", params.pad, 0)
    _checks.within("pad", params.pad, 0, 255)
    records, n = params.records, len(images)
    if records.dtype != torch.int32:
        raise TypeError(f"records: expected torch.int32, got {records.dtype}")
    if records.shape != (n, len(_op.COLUMNS)):
        raise ValueError(f"records: expected shape {[n, len(_op.COLUMNS)]}, got {list(records.shape)}")
    _checks.same_device("records", records, "images", images)
    if records.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_records(records, *images.shape[1:3])


@functools.lru_cache
def _limits(height: int, width: int) -> Tensor:
    """[2, 22] the least and the largest value of every column; of a box on its own."""
    most = {**_op.LIMITS, "dy": height, "dx": width, "partner": 2**31 - 1}
    for box in ("mix", "color", "erase"):
        most |= {f"{box}_{side}": height if side in ("top", "height") else width for side in _SIDES}
    least = {name: -most[name] if name in ("dy", "dx", "partner") else 0 for name in _op.COLUMNS}
    return torch.tensor(
        [[least[name] for name in _op.COLUMNS], [most[name] for name in _op.COLUMNS]], dtype=torch.int32
    )


_SIDES = ("top", "left", "height", "width")
_TOPS = [_op.COLUMNS.index(f"{box}_top") for box in ("mix", "color", "erase")]  # of top, left, height, width in a row


def _check_records(records: Tensor, height: int, width: int) -> None:
    least, most = _limits(height, width)
    wrong = (records < least) | (records > most)
    if wrong.any():
        _refuse(records, wrong, [f"{low} to {high}" for low, high in zip(least.tolist(), most.tolist(), strict=True)])
    for side, size in ((0, height), (1, width)):
        starts = [top + side for top in _TOPS]
        wrong = torch.zeros_like(records, dtype=torch.bool)
        wrong[:, [start + 2 for start in starts]] = (
            records[:, starts] + records[:, [start + 2 for start in starts]] > size
        )
        if wrong.any():
            _refuse(records, wrong, [f"a box that ends within {size} pixels"] * records.size(1))
    partner = _op.COLUMNS.index("partner")
    row = torch.arange(len(records)) + records[:, partner]
    wrong = torch.zeros_like(records, dtype=torch.bool)
    wrong[:, partner] = (row < 0) | (row >= len(records))
    if wrong.any():
        _refuse(records, wrong, [f"an image of the batch of {len(records)}"] * records.size(1))


def _refuse(records: Tensor, wrong: Tensor, expected: list[str]) -> None:
    row, column = wrong.nonzero()[0].tolist()
    name, value = _op.COLUMNS[column], records[row, column].item()
    raise ValueError(f"records[{row}].{name}: expected {expected[column]}, got {value}")
