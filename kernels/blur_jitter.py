r"""blur_jitter: brightness and contrast of an image, then a Gaussian blur, on bytes.

    jitter  two blends, x <- cut(m + f (x - m)), in the image's order: brightness (m = 0) and contrast (m = the rounded
            mean of the luminance of what it is given). Bit for bit Pillow's ImageEnhance: float32, product and sum
            rounded one after the other, cut to 0..255 towards 0.
    blur    out[y, x] = round(sum_ij t_|i| t_|j| image[y + i, x + j] / ONE^2), i and j in -R..R, borders reflected.

Shapes    images, out [B, H, W, 3] uint8; factors [B, 2] float32, of brightness and contrast, 1 changes nothing;
          contrast_first [B] bool; taps [B, R + 1] int32 by distance, with t_0 + 2 (t_1 + .. + t_R) = ONE, t_0 = ONE
          changes nothing. H, W > R: a reflection stays in the image.
Exact     Taps are multiples of 2^-22, so the sums of a blur are integers, of 30 bits along a row and 52 in all, which
          int64 and float64 hold: no order of summation, thread, instruction set or device moves them. Half goes to
          even, as in torch.round. A jitter has one order, and no compiler may fuse its product with its sum.
Memory    out; on the CPU 2 R + 2 rows of int32 a thread, on a GPU a number for 2048 pixels.
Floor     3 B H W bytes read, as many written. Contrast reads its images twice.
Measured  7.0 and 6.5 of the bytes for 64 images, of which a fourth is blurred and a fourth jittered, on two cores of an
          AMD EPYC: arithmetic, not bytes.
Source    spec ckda 7: of every infrared image one of both, factors 0.7..1.3, or R = 10 and deviations 0.1..3.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check

SHIFT = 44  # of a sum blurred in both directions
ONE = 1 << SHIFT // 2  # a pair of rows of white, 2 * 255 * ONE, is an int32, and a whole sum of theirs an exact double
LUMINANCE = 19595, 38470, 7471  # of 65536: red, green and blue, as Pillow rounds ITU-R 601
PART, BLOCK, BLOCK_Y, BLOCK_X = 2048, 4096, 16, 128


def gaussian_taps(sigma: Tensor, radius: int) -> Tensor:
    """``[B, R + 1]`` for deviations ``[B]``, from float64. The middle tap takes what rounding the others leaves of ONE.

    A deviation of 0 has the middle alone, and so has any whose other taps are less than half of 2^-22.
    """
    distance = torch.arange(radius + 1, dtype=torch.float64, device=sigma.device)
    weight = torch.exp(-0.5 * (distance / sigma.double().clamp(min=1e-3)[:, None]).square())
    taps = (ONE * weight / (2 * weight.sum(1, keepdim=True) - 1)).round().to(torch.int32)
    taps[:, 0] = ONE - 2 * taps[:, 1:].sum(1)
    return taps


def blur_jitter_ref(images: Tensor, factors: Tensor, contrast_first: Tensor, taps: Tensor) -> Tensor:
    x = images.float()
    for contrast in (contrast_first, ~contrast_first):
        base = torch.where(contrast, _mean_luminance(x), 0.0)[:, None, None, None]
        factor = torch.where(contrast, factors[:, 1], factors[:, 0]).float()[:, None, None, None]
        x = (base + factor * (x - base)).clamp(0, 255).trunc()
    total = _blurred(_blurred(x.long(), taps, 2), taps, 1)
    return ((total + (ONE * ONE // 2 - 1) + ((total >> SHIFT) & 1)) >> SHIFT).to(torch.uint8)


def _mean_luminance(x: Tensor) -> Tensor:
    total = ((x.long() * x.new_tensor(LUMINANCE).long()).sum(3) + 32768 >> 16).sum((1, 2))
    count = max(x.size(1) * x.size(2), 1)
    return ((2 * total + count) // (2 * count)).float()


def _blurred(x: Tensor, taps: Tensor, dim: int) -> Tensor:
    radius, last = taps.size(1) - 1, x.size(dim) - 1
    total = torch.zeros_like(x)
    for offset in range(-radius, radius + 1):
        at = (torch.arange(last + 1, device=x.device) + offset).abs()
        at = last - (last - at).abs()
        total += taps[:, abs(offset)].long()[:, None, None, None] * x.index_select(dim, at)
    return total


@triton.jit
def _blend(x, base, factor):
    """Launched with enable_fp_fusion=False: the product is rounded before the sum, as in Pillow."""
    return tl.minimum(tl.maximum(base + factor * (x - base), 0.0), 255.0).to(tl.int32).to(tl.float32)


@triton.jit
def _jittered(x, mean, brightness, contrast, first):
    x = _blend(x, tl.where(first, mean, 0.0), tl.where(first, contrast, brightness))
    return _blend(x, tl.where(first, 0.0, mean), tl.where(first, brightness, contrast))


@triton.jit
def _luminance_kernel(images_ptr, factors_ptr, first_ptr, sums_ptr, pixels, parts, PART: tl.constexpr):
    """Sums of the luminance that contrast is to meet; nothing for an image whose contrast stays."""
    image, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    if tl.load(factors_ptr + 2 * image + 1) != 1.0:
        brightness = tl.where(tl.load(first_ptr + image) != 0, 1.0, tl.load(factors_ptr + 2 * image))
        p = part * PART + tl.arange(0, PART)
        at, mask = images_ptr + 3 * (image.to(tl.int64) * pixels + p), p < pixels
        red = _blend(tl.load(at, mask=mask, other=0).to(tl.float32), 0.0, brightness).to(tl.int32)
        green = _blend(tl.load(at + 1, mask=mask, other=0).to(tl.float32), 0.0, brightness).to(tl.int32)
        blue = _blend(tl.load(at + 2, mask=mask, other=0).to(tl.float32), 0.0, brightness).to(tl.int32)
        tl.store(sums_ptr + tl.program_id(0), tl.sum((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16))


@triton.jit
def _record(image, factors_ptr, first_ptr, sums_ptr, pixels, parts, PARTS: tl.constexpr):
    """Mean, brightness, contrast and their order for one image."""
    brightness, contrast = tl.load(factors_ptr + 2 * image), tl.load(factors_ptr + 2 * image + 1)
    i = tl.arange(0, PARTS)
    sums = tl.load(sums_ptr + image * parts + i, mask=i < parts, other=0).to(tl.int64)
    mean = tl.where(contrast != 1.0, (2 * tl.sum(sums) + pixels) // (2 * pixels), 0)  # else nobody wrote the sums
    return mean.to(tl.float32), brightness, contrast, tl.load(first_ptr + image) != 0


@triton.jit
def _jitter_kernel(
    images_ptr, factors_ptr, first_ptr, taps_ptr, sums_ptr, out_ptr, pixels, parts, blocks, radius,
    ONE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bytes of an image that is not blurred."""
    image = tl.program_id(0) // blocks
    if tl.load(taps_ptr + image * (radius + 1)) == ONE:
        mean, brightness, contrast, first = _record(image, factors_ptr, first_ptr, sums_ptr, pixels, parts, PARTS)
        i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        at, mask = image.to(tl.int64) * pixels * 3 + i, i < 3 * pixels
        x = tl.load(images_ptr + at, mask=mask, other=0).to(tl.float32)
        x = _jittered(x, mean, brightness, contrast, first)
        tl.store(out_ptr + at, x.to(tl.uint8), mask=mask)


@triton.jit
def _reflected(at, last):
    return last - tl.abs(last - tl.abs(at))


@triton.jit
def _blur_kernel(
    images_ptr, factors_ptr, first_ptr, taps_ptr, sums_ptr, out_ptr, height, width, parts, tiles_x, tiles,
    ONE: tl.constexpr, SHIFT: tl.constexpr, RADIUS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """A tile of an image that is blurred: each row is summed along its length once, then into every row it reaches."""
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    taps_ptr += image * (RADIUS + 1)
    middle = tl.load(taps_ptr)
    if middle != ONE:
        mean, brightness, contrast, first = _record(
            image, factors_ptr, first_ptr, sums_ptr, height * width, parts, PARTS
        )
        jitters = (brightness != 1.0) | (contrast != 1.0)
        images_ptr += image.to(tl.int64) * height * width * 3
        out_ptr += image.to(tl.int64) * height * width * 3
        j = tile % tiles_x * BLOCK_X + tl.arange(0, BLOCK_X)
        column, channel = j // 3, j % 3
        y = tile // tiles_x * BLOCK_Y + tl.arange(0, BLOCK_Y)
        total = tl.zeros((BLOCK_Y, BLOCK_X), tl.int64)
        for k in range(0, BLOCK_Y + 2 * RADIUS):
            row = tile // tiles_x * BLOCK_Y + k - RADIUS
            line = images_ptr + tl.maximum(_reflected(row, height - 1), 0) * width * 3 + channel
            along = tl.zeros((BLOCK_X,), tl.int32)
            for d in tl.static_range(-RADIUS, RADIUS + 1):
                x = tl.load(line + _reflected(column + d, width - 1) * 3, mask=column < width, other=0)
                if jitters:
                    x = _jittered(x.to(tl.float32), mean, brightness, contrast, first).to(tl.uint8)
                along += tl.load(taps_ptr + (d if d > 0 else -d)) * x.to(tl.int32)
            off = tl.abs(y - row)
            tap = tl.load(taps_ptr + off, mask=off <= RADIUS, other=0)
            total += tap[:, None].to(tl.int64) * along[None, :].to(tl.int64)
        total += ONE * ONE // 2 - 1 + ((total >> SHIFT) & 1)
        at = y[:, None].to(tl.int64) * width * 3 + j[None, :]
        mask = (y[:, None] < height) & (column[None, :] < width)
        tl.store(out_ptr + at, (total >> SHIFT).to(tl.uint8), mask=mask)


blur_jitter = Op("blur_jitter", blur_jitter_ref)


@blur_jitter.register_fake
def _alloc(images, factors, contrast_first, taps):
    batch = images.size(0)
    shapes = [list(x.shape) for x in (images, factors, contrast_first, taps)]
    check(
        images.dim() == 4
        and images.size(3) == 3
        and taps.dim() == 2
        and factors.shape == (batch, 2)
        and contrast_first.shape == (batch,)
        and taps.size(0) == batch,
        lambda: f"blur_jitter: expected [B, H, W, 3], [B, 2], [B] and [B, R + 1], got {', '.join(map(str, shapes))}",
    )
    radius = taps.size(1) - 1
    check(
        0 <= radius < min(images.shape[1:3]),
        lambda: f"blur_jitter: expected images of more than {radius} rows and columns, got {shapes[0]}",
    )
    return torch.empty_like(images, memory_format=torch.contiguous_format)


@blur_jitter.register_kernel("cpu")
def _cpu(images, factors, contrast_first, taps):
    out = _alloc(images, factors, contrast_first, taps)
    inputs = (x.contiguous() for x in (images, factors, contrast_first, taps))
    _C.blur_jitter(*inputs, out, torch.get_num_threads())
    return out


@blur_jitter.register_kernel("cuda")
def _triton(images, factors, contrast_first, taps):
    out = _alloc(images, factors, contrast_first, taps)
    if out.numel() == 0:
        return out
    batch, height, width, _ = images.shape
    pixels, radius = height * width, taps.size(1) - 1
    parts, blocks = triton.cdiv(pixels, PART), triton.cdiv(3 * pixels, BLOCK)
    tiles_x = triton.cdiv(3 * width, BLOCK_X)
    tiles = tiles_x * triton.cdiv(height, BLOCK_Y)
    images, *records = (x.contiguous() for x in (images, factors, contrast_first, taps))
    sums = torch.empty(batch * parts, dtype=torch.int32, device=images.device)
    inputs = (images, *records, sums, out)
    fixed = {"ONE": ONE, "PARTS": triton.next_power_of_2(parts), "enable_fp_fusion": False}
    with torch.cuda.device_of(images):
        _luminance_kernel[(batch * parts,)](images, *records[:2], sums, pixels, parts, PART, enable_fp_fusion=False)
        _jitter_kernel[(batch * blocks,)](*inputs, pixels, parts, blocks, radius, BLOCK=BLOCK, **fixed)
        _blur_kernel[(batch * tiles,)](
            *inputs, height, width, parts, tiles_x, tiles,
            SHIFT=SHIFT, RADIUS=radius, BLOCK_Y=BLOCK_Y, BLOCK_X=BLOCK_X, **fixed,
        )  # fmt: skip
    return out
