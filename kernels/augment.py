r"""augment: uint8 images to a normalised batch, every step of training augmentation in one pass.

An image's steps are one record of whole numbers, `COLUMNS`; all zeros only normalise. For pixel (y, x), in order:

    window  u = image[y + dy, m + dx], m = W - 1 - x where `flip`, else x; `pad` outside the image
    mix     in the mix box: (weight u + (65536 - weight) v) / 65536, v the window of the image `partner` rows further on
    color   in the color box, or with `outside` not in it: channel c shows the source s = red, green or blue: 0..2 a
            channel, 3 the luminance 0.2989 R + 0.5870 G + 0.1140 B; other pixels stay
    erase   in the erase box: fill_c

Stage    when color happens. RAW: to values of 0..255. NORMALIZED: to n = (u / 255 - mean) / std, by the mean and std of
         the source. ERASED: as NORMALIZED, but after erase, so that a box shows the fill of the source.
Shapes   images [B, H, W, 3] uint8; records [B, 22] int32; out [B, 3, H, W] in dtype, contiguous or channels-last.
Exact    n_c = fma(u_c, scale_c, shift_c) in float32, scale = 1 / (255 std), shift = -mean / std; luminance is a chain
         of three such steps from shift, a mixture is exact. One rounding, where torchvision's steps make three. Halves
         are rounded to nearest even. Equal bits on every path.
Defined  for any record: boxes end at the image's borders, columns are clamped to their range (`LIMITS`), a partner
         beyond the batch is its first or last image.
Memory   out.
Floor    3 bytes read and 3 elements written a pixel.
Source   specs dakd 8 and 13.H4, idkl 8, ckda 7.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vifast.kernels._registry import Op, check

COLUMNS = (
    "dy", "dx", "flip",
    "partner", "weight", "mix_top", "mix_left", "mix_height", "mix_width",
    "red", "green", "blue", "stage", "outside", "color_top", "color_left", "color_height", "color_width",
    "erase_top", "erase_left", "erase_height", "erase_width",
)  # fmt: skip
RAW, NORMALIZED, ERASED = range(3)
ONE = 65536  # the weight of an image that is not mixed
GRAY = 3  # the source that is no channel
LUMINANCE = (0.2989, 0.5870, 0.1140)
LIMITS = {"flip": 1, "weight": ONE, "red": GRAY, "green": GRAY, "blue": GRAY, "stage": ERASED, "outside": 1}  # from 0


@functools.lru_cache
def constants(mean: Sequence[float], std: Sequence[float], fill: Sequence[float]) -> tuple[float, ...]:
    """scale [3], shift [3], the luminance of shift, fill [3], its luminance, the weights of luminance: 14 float32."""
    scale, shift = [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    gray = [sum(w * v for w, v in zip(LUMINANCE, values, strict=True)) for values in (shift, fill)]
    return tuple(torch.tensor([*scale, *shift, gray[0], *fill, gray[1], *LUMINANCE], dtype=torch.float32).tolist())


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a.double() * b.double() + c.double()).float()  # both are exact in float64: 24 bits times 24, and a sum


def augment_ref(
    images: Tensor,
    records: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    fill: Sequence[float],
    pad: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    n, h, w, _ = images.shape
    r = {name: column.long()[:, None, None] for name, column in zip(COLUMNS, records.unbind(1), strict=True)}
    r |= {name: r[name].clamp(0, most) for name, most in LIMITS.items()}
    image, y, x = (torch.arange(k, device=images.device) for k in (n, h, w))
    image, y = image[:, None, None], y[:, None]

    def inside(box):
        top, left = r[f"{box}_top"], r[f"{box}_left"]
        bottom, right = top + r[f"{box}_height"], left + r[f"{box}_width"]
        return ((top <= y) & (y < bottom) & (left <= x) & (x < right))[..., None]

    source_y, source_x = y + r["dy"], torch.where(r["flip"] == 1, w - 1 - x, x) + r["dx"]
    exists = (source_y >= 0) & (source_y < h) & (source_x >= 0) & (source_x < w)
    window = images[image, source_y.clamp(0, h - 1), source_x.clamp(0, w - 1)]
    window = window.masked_fill(~exists[..., None], pad).float()

    partner = window[(image + r["partner"]).clamp(0, n - 1).flatten()] if n else window
    weight = torch.where(inside("mix"), r["weight"][..., None], ONE).float()
    pixel = (weight * window + (ONE - weight) * partner) / ONE  # [B, H, W, 3], exact

    table = images.new_tensor(constants(tuple(mean), tuple(std), tuple(fill)), dtype=torch.float32)
    scale, shift, gray_shift, fill, luminance = table.split((3, 3, 1, 4, 3))
    gray = gray_shift
    for k in range(3):
        gray = _fma(pixel[..., k], (scale * luminance)[k], gray)
    normal = torch.cat((_fma(pixel, scale, shift), gray[..., None]), 3)  # [B, H, W, 4]: the sources
    stage, erased = r["stage"][..., None], inside("erase")
    normal = torch.where(erased & (stage == ERASED), fill, normal)

    source = torch.stack([r[name].flatten() for name in ("red", "green", "blue")], 1)  # [B, 3]
    weights = (
        torch.cat((torch.eye(3).to(scale), luminance[None]))[source] * scale[:, None]
    )  # [B, 3 shown, 3 of the pixel]
    raw = shift
    for k in range(3):
        raw = _fma(pixel[..., k, None], weights[:, None, None, :, k], raw)
    chosen = normal.gather(3, source[:, None, None].expand(n, h, w, 3))
    colored = inside("color") != (r["outside"][..., None] == 1)
    out = torch.where(colored, torch.where(stage == RAW, raw, chosen), normal[..., :3])
    out = torch.where(erased & (stage != ERASED), fill[:3], out)
    return _alloc(images, records, mean, std, fill, pad, dtype, channels_last).copy_(out.permute(0, 3, 1, 2))


augment = Op("augment", augment_ref)


@augment.register_fake
def _alloc(images, records, mean, std, fill, pad, dtype, channels_last):
    fits = images.dim() == 4 and images.size(3) == 3 and records.shape == (len(images), len(COLUMNS))
    got = f"{list(images.shape)} and {list(records.shape)}"
    check(fits, lambda: f"augment: expected [B, H, W, 3] and [B, {len(COLUMNS)}], got {got}")
    n, h, w, _ = images.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((n, 3, h, w), dtype=dtype, device=images.device, memory_format=layout)
