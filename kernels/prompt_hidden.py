r"""prompt_hidden: the cells of an image through a linear map, whose rows are partly those of the image's modality.

    hidden[b, r, g] = sum_d weight[row(b, r), d] cell[b, g, d] + bias[row(b, r)]

with cells, columns r and packed rows as in kernels/_prompts.py.

Shapes   images [B, C, H, W], modality [B] int64, weight [P, D], bias [P]; hidden [B, R, G] float32 (float64 for
         float64): a plane for each column.
Backward dW = sum of dh cell^T and db, by packed row, each the samples of its modality in their order, groups of samples
         first; a gradient to the images where it is asked for, [0] otherwise.
Defined  a modality without samples gets zeros. A NaN spoils the hidden values of its own cell.
Memory   hidden; half images are copied to float32 on the CPU. Partial sums of dW.
Floor    one read of the images forward, and one backward.
Measured within ModalityPrompts, 5.6 of the bytes for 64 x 3 x 256 x 128 on two cores of an AMD EPYC, forward and
         backward: five products of 768 x 24 a cell.
Source   spec ckda 3.1-3.3, 12.H3.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._prompts import (
    cells_of,
    check_sizes,
    columns_of,
    images_of,
    is_infrared,
    packed_sum,
    pixels_at,
    tile,
    total_of_samples,
)
from vifast.kernels._registry import Op


def prompt_hidden_ref(
    images: Tensor, modality: Tensor, weight: Tensor, bias: Tensor, specific: int, side: int
) -> Tensor:
    acc = torch.promote_types(images.dtype, torch.float32)
    columns = columns_of(modality, specific, len(weight))
    cells = cells_of(images.to(acc), side)
    return weight.to(acc)[columns] @ cells.mT + bias.to(acc)[columns][..., None]


prompt_hidden = Op("prompt_hidden", prompt_hidden_ref)


@prompt_hidden.register_fake
def _alloc(images, modality, weight, bias, specific, side):
    check_sizes("prompt_hidden", images, modality, *weight.shape, specific, side)
    cells = (images.size(2) // side) * (images.size(3) // side)
    acc = torch.promote_types(images.dtype, torch.float32)
    return images.new_empty(images.size(0), weight.size(0) - specific, cells, dtype=acc)


@prompt_hidden.register_kernel("cpu")
def _cpu(images, modality, weight, bias, specific, side):
    hidden = _alloc(images, modality, weight, bias, specific, side)
    inputs = float_rows(images), modality.contiguous(), float_rows(weight), float_rows(bias)
    _C.prompt_hidden(*inputs, specific, side, hidden, torch.get_num_threads())
    return hidden


@triton.jit
def _hidden_kernel(
    images_ptr, modality_ptr, weight_ptr, bias_ptr, hidden_ptr, channels, height, width, cells, specific, columns,
    SIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some cells of one sample, all columns. WIDTH: entries of a cell."""
    sample = tl.program_id(0)
    g, r = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_R)
    row = tl.where(r < specific, r + is_infrared(modality_ptr, sample) * specific, r + specific)
    total = tl.zeros((BLOCK_G, BLOCK_R), tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        at = pixels_at(sample, g, d, channels, height, width, SIDE)
        x = tl.load(images_ptr + at, mask=(g[:, None] < cells) & (d[None, :] < WIDTH), other=0.0).to(tl.float32)
        inside = (r[None, :] < columns) & (d[:, None] < WIDTH)
        w = tl.load(weight_ptr + row[None, :] * WIDTH + d[:, None], mask=inside, other=0.0).to(tl.float32)
        total = tl.dot(x, w, total, input_precision="tf32x3")
    total += tl.load(bias_ptr + row, mask=r < columns, other=0.0).to(tl.float32)[None, :]
    at = (sample.to(tl.int64) * columns + r)[None, :] * cells + g[:, None]
    tl.store(hidden_ptr + at, total, mask=(g[:, None] < cells) & (r[None, :] < columns))


@prompt_hidden.register_kernel("cuda")
def _triton(images, modality, weight, bias, specific, side):
    hidden = _alloc(images, modality, weight, bias, specific, side)
    n, columns, cells = hidden.shape
    if hidden.numel() > 0:
        inputs = (x.detach().contiguous() for x in (images, modality, weight, bias))
        with torch.cuda.device_of(images):
            _hidden_kernel[(n, triton.cdiv(cells, 32))](
                *inputs, hidden, *images.shape[1:], cells, specific, columns,
                SIDE=side, WIDTH=weight.size(1), BLOCK_G=32, BLOCK_R=tile(columns), BLOCK_D=32, num_warps=2,
            )  # fmt: skip
    return hidden


def _backward_ref(
    grad: Tensor, images: Tensor, modality: Tensor, weight: Tensor, specific: int, side: int, of_images: bool
) -> tuple[Tensor, Tensor, Tensor]:
    columns = columns_of(modality, specific, len(weight))
    cells = cells_of(images.to(grad.dtype), side)
    to_weight = packed_sum(grad @ cells, columns, len(weight)).to(weight.dtype)
    to_bias = packed_sum(grad.sum(2), columns, len(weight)).to(weight.dtype)
    if not of_images:
        return to_weight, to_bias, images.new_empty(0)
    to_cells = grad.mT @ weight.to(grad.dtype)[columns]
    return to_weight, to_bias, images_of(to_cells, side, images.size(2)).to(images.dtype).contiguous()


prompt_hidden_backward = Op("prompt_hidden_backward", _backward_ref)


@prompt_hidden_backward.register_fake
def _alloc_backward(grad, images, modality, weight, specific, side, of_images):
    to_images = images.new_empty(images.shape if of_images else 0)
    return weight.new_empty(weight.shape), weight.new_empty(len(weight)), to_images


@prompt_hidden_backward.register_kernel("cpu")
def _cpu_backward(grad, images, modality, weight, specific, side, of_images):
    x, maps = float_rows(images), float_rows(weight)
    to_weight, to_bias, to_images = _alloc_backward(grad, x, modality, maps, specific, side, of_images)
    out = to_weight, to_bias, to_images if of_images else None
    inputs = grad.contiguous(), x, modality.contiguous(), maps
    _C.prompt_hidden_backward(*inputs, specific, side, *out, torch.get_num_threads())
    return to_weight.to(weight.dtype), to_bias.to(weight.dtype), to_images.to(images.dtype)


@triton.jit
def _weight_kernel(
    grad_ptr, images_ptr, parts_ptr, channels, height, width, cells, columns,
    SIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One sample's share of some columns of dW. The bias is the weight of an entry WIDTH that is 1."""
    sample = tl.program_id(0)
    d, r = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for start in range(0, cells, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        at = (sample.to(tl.int64) * columns + r)[:, None] * cells + g[None, :]
        grad = tl.load(grad_ptr + at, mask=(r[:, None] < columns) & (g[None, :] < cells), other=0.0)
        at = pixels_at(sample, g, d, channels, height, width, SIDE)
        x = tl.load(images_ptr + at, mask=(g[:, None] < cells) & (d[None, :] < WIDTH), other=0.0).to(tl.float32)
        total = tl.dot(grad, tl.where(d[None, :] == WIDTH, 1.0, x), total, input_precision="tf32x3")
    at = (sample.to(tl.int64) * columns + r)[:, None] * (WIDTH + 1) + d[None, :]
    tl.store(parts_ptr + at, total, mask=(r[:, None] < columns) & (d[None, :] <= WIDTH))


@triton.jit
def _sum_kernel(
    parts_ptr, modality_ptr, to_weight_ptr, to_bias_ptr, n, specific, columns,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One packed row of dW and db."""
    q, k = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    which = tl.where(q < specific, 0, tl.where(q < 2 * specific, 1, 2))
    row = tl.where(q < specific, q, q - specific)
    total = total_of_samples(parts_ptr, modality_ptr, which, row, n, columns, WIDTH + 1, k, BLOCK)
    tl.store(to_weight_ptr + q * WIDTH + k, total, mask=k < WIDTH)
    tl.store(to_bias_ptr + q + 0 * k, total, mask=k == WIDTH)


@triton.jit
def _images_kernel(
    grad_ptr, modality_ptr, weight_ptr, to_images_ptr, channels, height, width, cells, specific, columns,
    SIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some entries of some cells of one sample."""
    sample = tl.program_id(0)
    g, r = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_R)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.where(r < specific, r + is_infrared(modality_ptr, sample) * specific, r + specific)
    at = (sample.to(tl.int64) * columns + r)[None, :] * cells + g[:, None]
    grad = tl.load(grad_ptr + at, mask=(r[None, :] < columns) & (g[:, None] < cells), other=0.0)
    inside = (r[:, None] < columns) & (d[None, :] < WIDTH)
    w = tl.load(weight_ptr + row[:, None] * WIDTH + d[None, :], mask=inside, other=0.0).to(tl.float32)
    at = pixels_at(sample, g, d, channels, height, width, SIDE)
    inside = (g[:, None] < cells) & (d[None, :] < WIDTH)
    tl.store(to_images_ptr + at, tl.dot(grad, w, input_precision="tf32x3"), mask=inside)


@prompt_hidden_backward.register_kernel("cuda")
def _triton_backward(grad, images, modality, weight, specific, side, of_images):
    out = _alloc_backward(grad, images, modality, weight, specific, side, of_images)
    (n, columns, cells), (packed, width) = grad.shape, weight.shape
    if grad.numel() == 0:
        return tuple(x.zero_() for x in out)
    grad, x, modality, weight = (t.detach().contiguous() for t in (grad, images, modality, weight))
    parts = grad.new_empty(n, columns, width + 1)
    sizes, constants = images.shape[1:], {"SIDE": side, "WIDTH": width}
    blocks = {"BLOCK_G": 32, "BLOCK_R": tile(columns), "BLOCK_D": 64, "num_warps": 2}
    with torch.cuda.device_of(images):
        grid = n, triton.cdiv(width + 1, 64)
        _weight_kernel[grid](grad, x, parts, *sizes, cells, columns, **constants, **blocks)
        grid = packed, triton.cdiv(width + 1, 256)
        _sum_kernel[grid](parts, modality, *out[:2], n, specific, columns, WIDTH=width, BLOCK=256, num_warps=2)
        if of_images:
            grid = n, triton.cdiv(cells, 32), triton.cdiv(width, 64)
            rows = grad, modality, weight, out[2]
            _images_kernel[grid](*rows, *sizes, cells, specific, columns, **constants, **blocks)
    return out


def _setup(ctx, inputs, output):
    images, modality, weight, bias, *ctx.sizes = inputs
    ctx.dtype = bias.dtype
    ctx.save_for_backward(images, modality, weight)


def _backward(ctx, grad):
    if grad is None:
        return (None,) * 6
    of_images = ctx.needs_input_grad[-6]
    to_weight, to_bias, to_images = prompt_hidden_backward(grad, *ctx.saved_tensors, *ctx.sizes, of_images)
    return to_images if of_images else None, None, to_weight, to_bias.to(ctx.dtype), None, None


prompt_hidden.register_autograd(_backward, _setup)
