r"""prompt_insertion: prompts from the values of their columns, dropped out part by part and added to the images.

    P = keep_s (C_m s + c_m) + keep_c (F relu(v) + f),    x' = x + P

for the specific columns s of a cell, by its modality m, and the common columns v; see kernels/_prompts.py.

Shapes   images, x', P [B, C, H, W] of one dtype, values [B, R, G] float32 (float64 for float64), modality [B] int64,
         weight [D, P], bias [parts, D]: of visible and infrared, then of the common part, of the parts that there are.
Dropout  keep is 0 with probability p, a multiple of 2^-16, and 1 / (1 - p) otherwise, for every part and pixel. The 16
         low (specific) and high (common) bits of a word of Philox decide: of cell n = b G + g the word d mod Q, of the
         counter (d mod Q, n, n >> 32, 0) the one at d // Q, Q = ceil(D / 4), keyed by `seed` [] int64. The same on
         every device and in the backward, which draws again. No seed: nothing is drawn or dropped.
Backward with e = dx' + dP: weights and bias from keep e, values from its product with them, where relu lets through;
         images get dx' itself.
Memory   x' and P; of the backward partial sums of dC and dF. Half images are copied to float32 on the CPU.
Floor    one read of the images and two writes; backward one read of both gradients.
Measured within ModalityPrompts, 4.7 of the bytes forward and 10 backward for 64 x 3 x 256 x 128 on two cores of an AMD
         EPYC: products and draws, not bytes.
Source   spec ckda 3.4, 12.H3.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._philox import philox
from vifast.kernels._prompts import (
    cells_of,
    check_sizes,
    columns_at,
    columns_of,
    entries_of,
    images_of,
    is_infrared,
    kept,
    packed_sum,
    pixels_at,
    tile,
    total_of_samples,
    weights_at,
    words_of,
)
from vifast.kernels._registry import Op, check

CHANCES = 65536  # of 16 bits
BLOCK = 32  # entries of cells in a program: 8 pixels, or 32 bytes, of each quarter


def threshold(p: float) -> int:
    """A part's pixel is kept where its 16 bits are at least this."""
    return round(p * CHANCES)


def _keep(seed: Tensor | None, p: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the specific and of the common part, of cells [B, G, D]."""
    if seed is None:
        return like.new_ones(()), like.new_ones(())
    n, width, dropped = like.size(0) * like.size(1), like.size(2), threshold(p)
    cell = torch.arange(n, device=like.device)[:, None]
    word = torch.arange(-(-width // 4), device=like.device)
    key = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    words = torch.cat(philox(torch.broadcast_tensors(word, cell, cell >> 32, torch.zeros_like(word)), key), 1)
    words = words[:, :width].view(like.shape)
    scale = CHANCES / max(CHANCES - dropped, 1)
    return tuple((half >= dropped).to(like.dtype) * scale for half in (words & 0xFFFF, words >> 16))


def _parts(modality: Tensor, weight: Tensor, columns: int) -> tuple[int, Tensor, Tensor]:
    """How many columns are specific, and the rows of the bias for either part of a sample."""
    specific = weight.size(1) - columns
    infrared = (modality != 0).long()
    return specific, infrared, torch.full_like(infrared, 2 if specific else 0)


def prompt_insertion_ref(
    images: Tensor,
    values: Tensor,
    modality: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    p: float,
    side: int,
) -> tuple[Tensor, Tensor]:
    acc = values.dtype
    specific, *rows = _parts(modality, weight, values.size(1))
    maps = weight.to(acc).T[columns_of(modality, specific, weight.size(1))]  # [B, R, D]
    either = slice(0, specific), slice(specific, None)
    cells = values[:, either[0]], values[:, either[1]].relu()
    keeps = _keep(seed, p, cells_of(images, side).to(acc))
    parts = [
        keep * (part.mT @ maps[:, own] + bias.to(acc)[row][:, None])
        for part, own, row, keep in zip(cells, either, rows, keeps, strict=True)
        if part.size(1)
    ]
    prompt = images_of(sum(parts), side, images.size(2))
    return (images.to(acc) + prompt).to(images.dtype).contiguous(), prompt.to(images.dtype).contiguous()


prompt_insertion = Op("prompt_insertion", prompt_insertion_ref)


@prompt_insertion.register_fake
def _alloc(images, values, modality, weight, bias, seed, p, side):
    check_sizes("prompt_insertion", images, modality, weight.size(1), weight.size(0), 0, side)
    (width, packed), cells = weight.shape, images.size(2) * images.size(3) // side**2
    specific = packed - values.size(1)
    parts = 2 * (specific > 0) + (2 * specific < packed)
    fits = values.dim() == 3 and values.shape[::2] == (len(images), cells) and 0 <= 2 * specific <= packed
    check(
        fits and bias.shape == (parts, width),
        lambda: (
            f"prompt_insertion: expected values [{len(images)}, R, {cells}] of {packed} packed columns and bias "
            f"[{parts}, {width}], got {list(values.shape)} and {list(bias.shape)}"
        ),
    )
    return tuple(torch.empty_like(images, memory_format=torch.contiguous_format) for _ in range(2))


@prompt_insertion.register_kernel("cpu")
def _cpu(images, values, modality, weight, bias, seed, p, side):
    x = float_rows(images)
    out = _alloc(x, values, modality, weight, bias, seed, p, side)
    inputs = x, values.contiguous(), modality.contiguous(), float_rows(weight), float_rows(bias)
    _C.prompt_insertion(*inputs, seed, p, side, *out, torch.get_num_threads())
    return tuple(image.to(images.dtype) for image in out)


@triton.jit
def _insertion_kernel(
    images_ptr, values_ptr, modality_ptr, weight_ptr, bias_ptr, seed_ptr, prompted_ptr, prompt_ptr,
    channels, height, width, cells, specific, common, dropped, scale,
    SPECIFIC: tl.constexpr, COMMON: tl.constexpr, SIDE: tl.constexpr, WIDTH: tl.constexpr, QUARTER: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some entries of some cells of one sample. SPECIFIC and COMMON: whether there is such a part."""
    sample, m = tl.program_id(0), is_infrared(modality_ptr, tl.program_id(0))
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    d, inside = entries_of(tl.program_id(2), QUARTER, WIDTH, BLOCK_D)
    r_s, r_c, columns, packed = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_C), specific + common, 2 * specific + common
    if seed_ptr is not None:
        words = words_of(seed_ptr, sample.to(tl.int64) * cells + g, tl.program_id(2), BLOCK_D)
    total = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    if SPECIFIC:
        v = columns_at(values_ptr, sample, g, r_s, 0, specific, columns, cells, False)
        w = weights_at(weight_ptr, d, r_s, m * specific, specific, packed, inside)
        part = tl.dot(v, w, input_precision="tf32x3")
        part += tl.load(bias_ptr + m * WIDTH + d, mask=inside, other=0.0).to(tl.float32)[None, :]
        if seed_ptr is not None:
            part = kept(part, words & 0xFFFF, dropped, scale)
        total += part
    if COMMON:
        v = columns_at(values_ptr, sample, g, r_c, specific, common, columns, cells, True)
        w = weights_at(weight_ptr, d, r_c, 2 * specific, common, packed, inside)
        part = tl.dot(v, w, input_precision="tf32x3")
        at_bias = bias_ptr + (2 * WIDTH if SPECIFIC else 0) + d
        part += tl.load(at_bias, mask=inside, other=0.0).to(tl.float32)[None, :]
        if seed_ptr is not None:
            part = kept(part, words >> 16, dropped, scale)
        total += part
    at = pixels_at(sample, g, d, channels, height, width, SIDE)
    mask = (g[:, None] < cells) & inside[None, :]
    x = tl.load(images_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(prompt_ptr + at, total, mask=mask)
    tl.store(prompted_ptr + at, x + total, mask=mask)


def _launch(values, weight, p, side):
    """Sizes of values, scalars, constants and the blocks of entries that both kernels share."""
    (width, packed), (_, columns, cells) = weight.shape, values.shape
    specific = packed - columns
    dropped = threshold(p)
    scalars = cells, specific, columns - specific, dropped, CHANCES / max(CHANCES - dropped, 1)
    constants = {
        "SPECIFIC": specific > 0, "COMMON": columns > specific, "SIDE": side, "WIDTH": width, "QUARTER": -(-width // 4),
        "BLOCK_S": tile(specific), "BLOCK_C": tile(columns - specific), "BLOCK_G": 32, "BLOCK_D": BLOCK,
        "num_warps": 2, "num_stages": 1,
    }  # fmt: skip
    return scalars, constants, triton.cdiv(constants["QUARTER"], BLOCK // 4)


@prompt_insertion.register_kernel("cuda")
def _triton(images, values, modality, weight, bias, seed, p, side):
    out = _alloc(images, values, modality, weight, bias, seed, p, side)
    if images.numel() > 0:
        scalars, constants, blocks = _launch(values, weight, p, side)
        inputs = [x.detach().contiguous() for x in (images, values, modality, weight, bias)]
        with torch.cuda.device_of(images):
            _insertion_kernel[(len(images), triton.cdiv(scalars[0], 32), blocks)](
                *inputs, seed, *out, *images.shape[1:], *scalars, **constants
            )
    return out


def _backward_ref(
    to_prompted: Tensor | None,
    to_prompt: Tensor | None,
    values: Tensor,
    modality: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    p: float,
    side: int,
) -> tuple[Tensor, Tensor, Tensor]:
    acc = values.dtype
    given = [cells_of(g.to(acc), side) for g in (to_prompted, to_prompt) if g is not None]
    specific, *rows = _parts(modality, weight, values.size(1))
    columns = columns_of(modality, specific, weight.size(1))
    maps = weight.to(acc).T[columns]
    to_bias = values.new_zeros(bias.shape)
    to_values, to_maps = torch.zeros_like(values), torch.zeros_like(maps)
    either = slice(0, specific), slice(specific, None)
    for own, row, keep in zip(either, rows, _keep(seed, p, given[0]), strict=True):
        part = values[:, own]
        if part.size(1) == 0:
            continue
        kept = keep * sum(given)
        to_bias.index_add_(0, row, kept.sum(1))
        to_values[:, own] = maps[:, own] @ kept.mT
        to_maps[:, own] = (part.relu() if own.stop is None else part) @ kept
    common = either[1]
    to_values[:, common] *= values[:, common] > 0
    to_weight = packed_sum(to_maps, columns, weight.size(1)).T
    return to_values, to_weight.to(weight.dtype).contiguous(), to_bias.to(bias.dtype)


prompt_insertion_backward = Op("prompt_insertion_backward", _backward_ref)


@prompt_insertion_backward.register_fake
def _alloc_backward(to_prompted, to_prompt, values, modality, weight, bias, seed, p, side):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (values, weight, bias))


@prompt_insertion_backward.register_kernel("cpu")
def _cpu_backward(to_prompted, to_prompt, values, modality, weight, bias, seed, p, side):
    grads = [g if g is None else float_rows(g) for g in (to_prompted, to_prompt)]
    maps = float_rows(weight)
    out = _alloc_backward(*grads, values, modality, maps, bias.float(), seed, p, side)
    inputs = values.contiguous(), modality.contiguous(), maps
    _C.prompt_insertion_backward(*grads, *inputs, seed, p, side, *out, torch.get_num_threads())
    return out[0], out[1].to(weight.dtype), out[2].to(bias.dtype)


@triton.jit
def _both_gradients(to_prompted_ptr, to_prompt_ptr, at, mask):
    total = tl.zeros(at.shape, tl.float32)
    if to_prompted_ptr is not None:
        total += tl.load(to_prompted_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if to_prompt_ptr is not None:
        total += tl.load(to_prompt_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def _values_kernel(
    to_prompted_ptr, to_prompt_ptr, values_ptr, modality_ptr, weight_ptr, seed_ptr, to_values_ptr,
    channels, height, width, cells, specific, common, dropped, scale,
    SPECIFIC: tl.constexpr, COMMON: tl.constexpr, SIDE: tl.constexpr, WIDTH: tl.constexpr, QUARTER: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All columns of some cells of one sample."""
    sample, m = tl.program_id(0), is_infrared(modality_ptr, tl.program_id(0))
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    r_s, r_c, columns, packed = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_C), specific + common, 2 * specific + common
    to_s = tl.zeros((BLOCK_G, BLOCK_S), tl.float32)
    to_c = tl.zeros((BLOCK_G, BLOCK_C), tl.float32)
    for chunk in range(0, tl.cdiv(QUARTER, BLOCK_D // 4)):
        d, inside = entries_of(chunk, QUARTER, WIDTH, BLOCK_D)
        at = pixels_at(sample, g, d, channels, height, width, SIDE)
        given = _both_gradients(to_prompted_ptr, to_prompt_ptr, at, (g[:, None] < cells) & inside[None, :])
        if seed_ptr is not None:
            words = words_of(seed_ptr, sample.to(tl.int64) * cells + g, chunk, BLOCK_D)
        if SPECIFIC:
            mine = kept(given, words & 0xFFFF, dropped, scale) if seed_ptr is not None else given
            w = weights_at(weight_ptr, d, r_s, m * specific, specific, packed, inside)
            to_s = tl.dot(mine, tl.trans(w), to_s, input_precision="tf32x3")
        if COMMON:
            mine = kept(given, words >> 16, dropped, scale) if seed_ptr is not None else given
            w = weights_at(weight_ptr, d, r_c, 2 * specific, common, packed, inside)
            to_c = tl.dot(mine, tl.trans(w), to_c, input_precision="tf32x3")
    to_values_ptr += sample.to(tl.int64) * columns * cells
    if SPECIFIC:
        mask = (r_s[None, :] < specific) & (g[:, None] < cells)
        tl.store(to_values_ptr + r_s[None, :] * cells + g[:, None], to_s, mask=mask)
    if COMMON:
        v = columns_at(values_ptr, sample, g, r_c, specific, common, columns, cells, True)
        mask = (r_c[None, :] < common) & (g[:, None] < cells)
        at = (specific + r_c)[None, :] * cells + g[:, None]
        tl.store(to_values_ptr + at, tl.where(v > 0.0, to_c, 0.0), mask=mask)


@triton.jit
def _maps_kernel(
    to_prompted_ptr, to_prompt_ptr, values_ptr, seed_ptr, parts_ptr,
    channels, height, width, cells, specific, common, dropped, scale,
    SPECIFIC: tl.constexpr, COMMON: tl.constexpr, SIDE: tl.constexpr, WIDTH: tl.constexpr, QUARTER: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some entries of one sample: what they give to the weights and to the bias, as rows of its parts [R + 2, D]."""
    sample, columns = tl.program_id(0), specific + common
    d, inside = entries_of(tl.program_id(1), QUARTER, WIDTH, BLOCK_D)
    r_s, r_c = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_C)
    maps_s, bias_s = tl.zeros((BLOCK_S, BLOCK_D), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    maps_c, bias_c = tl.zeros((BLOCK_C, BLOCK_D), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, cells, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        at = pixels_at(sample, g, d, channels, height, width, SIDE)
        given = _both_gradients(to_prompted_ptr, to_prompt_ptr, at, (g[:, None] < cells) & inside[None, :])
        if seed_ptr is not None:
            words = words_of(seed_ptr, sample.to(tl.int64) * cells + g, tl.program_id(1), BLOCK_D)
        if SPECIFIC:
            mine = kept(given, words & 0xFFFF, dropped, scale) if seed_ptr is not None else given
            v = columns_at(values_ptr, sample, g, r_s, 0, specific, columns, cells, False)
            maps_s = tl.dot(tl.trans(v), mine, maps_s, input_precision="tf32x3")
            bias_s += tl.sum(mine, 0)
        if COMMON:
            mine = kept(given, words >> 16, dropped, scale) if seed_ptr is not None else given
            v = columns_at(values_ptr, sample, g, r_c, specific, common, columns, cells, True)
            maps_c = tl.dot(tl.trans(v), mine, maps_c, input_precision="tf32x3")
            bias_c += tl.sum(mine, 0)
    parts_ptr += sample.to(tl.int64) * (columns + 2) * WIDTH
    if SPECIFIC:
        at = r_s[:, None] * WIDTH + d[None, :]
        tl.store(parts_ptr + at, maps_s, mask=(r_s[:, None] < specific) & inside[None, :])
        tl.store(parts_ptr + columns * WIDTH + d, bias_s, mask=inside)
    if COMMON:
        at = (specific + r_c)[:, None] * WIDTH + d[None, :]
        tl.store(parts_ptr + at, maps_c, mask=(r_c[:, None] < common) & inside[None, :])
        tl.store(parts_ptr + (columns + 1) * WIDTH + d, bias_c, mask=inside)


@triton.jit
def _sum_kernel(
    parts_ptr, modality_ptr, to_weight_ptr, to_bias_ptr, n, specific, common,
    SPECIFIC: tl.constexpr, COMMON: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One packed column of dC and dF, or, beyond those, the bias of visible, infrared and both."""
    q, k = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    packed, columns = 2 * specific + common, specific + common
    which = tl.where(q < specific, 0, tl.where(q < 2 * specific, 1, 2))
    row = tl.where(q < specific, q, q - specific)
    if q >= packed:
        which = q - packed
        row = tl.where(which == 2, columns + 1, columns)
    total = total_of_samples(parts_ptr, modality_ptr, which, row, n, columns + 2, WIDTH, k, BLOCK)
    tl.store(to_weight_ptr + k * packed + q, total, mask=k < tl.where(q < packed, WIDTH, 0))
    there = (q >= packed) & (((which == 2) & COMMON) | ((which < 2) & SPECIFIC))
    line = which if SPECIFIC else which - 2
    tl.store(to_bias_ptr + line * WIDTH + k, total, mask=k < tl.where(there, WIDTH, 0))


@prompt_insertion_backward.register_kernel("cuda")
def _triton_backward(to_prompted, to_prompt, values, modality, weight, bias, seed, p, side):
    out = _alloc_backward(to_prompted, to_prompt, values, modality, weight, bias, seed, p, side)
    if values.numel() == 0:
        return tuple(x.zero_() for x in out)
    scalars, constants, chunks = _launch(values, weight, p, side)
    (n, columns, cells), (width, packed), specific = values.shape, weight.shape, scalars[1]
    grads = [g if g is None else g.contiguous() for g in (to_prompted, to_prompt)]
    shape = next(g for g in grads if g is not None).shape
    values, modality, weight = (x.detach().contiguous() for x in (values, modality, weight))
    parts = values.new_empty(n, columns + 2, width)
    with torch.cuda.device_of(values):
        sizes = *shape[1:], *scalars
        _values_kernel[(n, triton.cdiv(cells, 32))](*grads, values, modality, weight, seed, out[0], *sizes, **constants)
        _maps_kernel[(n, chunks)](*grads, values, seed, parts, *sizes, **constants | {"BLOCK_G": 16})
        there = {name: constants[name] for name in ("SPECIFIC", "COMMON", "WIDTH")}
        _sum_kernel[(packed + 3, triton.cdiv(width, 256))](
            parts, modality, *out[1:], n, specific, columns - specific, **there, BLOCK=256, num_warps=2
        )
    return out


def _setup(ctx, inputs, output):
    _, *tensors, ctx.p, ctx.side = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, to_prompted, to_prompt):
    if to_prompted is None and to_prompt is None:
        return (None,) * 8
    wanted = any(ctx.needs_input_grad[-7:-3])
    grads = (None,) * 3
    if wanted:
        grads = prompt_insertion_backward(to_prompted, to_prompt, *ctx.saved_tensors, ctx.p, ctx.side)
    return to_prompted, grads[0], None, grads[1], grads[2], None, None, None


prompt_insertion.register_autograd(_backward, _setup)
