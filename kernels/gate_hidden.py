r"""gate_hidden: first 1x1 convolutions of a purifier's masks, A of the map's instance normalisation, E of the map.

    y = (x - mean) rstd      hidden_u = A (y weight + bias)      hidden_x = E x

Shapes   x [N, C, H, W]; conv_u = A, conv_x = E [K, C, 1, 1] of the dtype to multiply in; mean, rstd [N, C], those of x;
         weight, bias [C]. Results [N, K, H, W], each of its convolution's dtype. Rows float32 (float64 for float64).
Slabs    some images at a time are normalised into memory that stays in cache, and multiplied from there. A product of x
         with A scaled for each image would write N K C weights: for 128 x 2048 and maps of 24 x 9 0.6 of a map. It also
         cancels where the mean is large: at 30 deviations its float32 error was 10 times that of this.
Backward normalises again. With d = A^T grad_u, P positions and sums over them for each channel,
         x gets weight rstd (d - sum d / P - y sum(d y) / P) + E^T grad_x, which is what it gets through mean and rstd
         too; A gets (grad_u y^T) weight + (sum grad_u) bias^T; weight gets sum(d y) and bias sum d = A^T sum grad_u.
Bits     the products are the platform's convolutions; with another number of threads they may round otherwise.
Memory   results and a few slabs, nothing kept but the arguments; backward the gradient of x and a few slabs.
Floor    the products; one read of x forward; backward one of x and one write of its gradient.
Source   specs idkl 3.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from vifast.kernels._map import channels_last, dense_map, like_map
from vifast.kernels._registry import Op, check
from vifast.kernels.purifier import normalized, spread

# Bytes of x at a time. On two cores of an AMD EPYC 1 to 4 MiB were level and 16 slower; for a card it is a guess from
# the size of its cache.
SLAB = {"cpu": 4 << 20, "cuda": 8 << 20}
_convolution_backward = torch.ops.aten.convolution_backward.default


def gate_hidden_ref(
    x: Tensor, conv_u: Tensor, conv_x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    u = normalized(x.to(mean.dtype), mean, rstd, weight, bias, instance=True)
    return conv2d(u.to(conv_u.dtype), conv_u), conv2d(x.to(conv_x.dtype), conv_x)


gate_hidden = Op("gate_hidden", gate_hidden_ref)


@gate_hidden.register_fake
def _alloc(x, conv_u, conv_x, mean, rstd, weight, bias):
    n, c = x.shape[:2]
    shapes = [list(a.shape) for a in (conv_u, conv_x, mean, rstd, weight, bias)]
    hidden = conv_u.size(0)
    fits = x.dim() == 4 and shapes == [[hidden, c, 1, 1]] * 2 + [[n, c]] * 2 + [[c]] * 2
    check(
        fits, lambda: f"gate_hidden: expected [K, C, 1, 1] twice, [N, C] twice, [C] twice, got {shapes} for {n} x {c}"
    )
    layout = torch.channels_last if channels_last(x) else torch.contiguous_format
    shape = n, hidden, *x.shape[2:]
    return tuple(torch.empty(shape, dtype=w.dtype, device=x.device, memory_format=layout) for w in (conv_u, conv_x))


def _slabs(x, *others):
    """The map and others of its images, cut alike."""
    images = max(SLAB.get(x.device.type, SLAB["cuda"]) // max(x[:1].numel() * x.element_size(), 1), 1)
    return zip(*(a.split(images) for a in (x, *others)), strict=True)


@gate_hidden.register_kernel("cpu")
@gate_hidden.register_kernel("cuda")
def _in_slabs(x, conv_u, conv_x, mean, rstd, weight, bias):
    out = _alloc(x, conv_u, conv_x, mean, rstd, weight, bias)
    x, scale, bias = dense_map(x), rstd * weight, spread(bias[None])
    with torch.autocast(x.device.type, enabled=False):
        for part, to_u, to_x, center, factor in _slabs(x, *out, spread(mean), spread(scale)):
            u = torch.addcmul(bias, torch.sub(part, center), factor)
            to_u.copy_(conv2d(u.to(conv_u.dtype), conv_u))
            to_x.copy_(conv2d(part.to(conv_x.dtype), conv_x))
    return out


def _backward_in_slabs(
    grad_u: Tensor,
    grad_x: Tensor,
    x: Tensor,
    conv_u: Tensor,
    conv_x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, conv_u, conv_x, and of weight and bias by image."""
    out, *to_convs, dots, total = _alloc_backward(grad_u, grad_x, x, conv_u, conv_x, mean, rstd, weight, bias)
    to_u, to_x = (torch.zeros_like(w, dtype=mean.dtype) for w in (conv_u, conv_x))
    sums = grad_u.sum((2, 3), dtype=mean.dtype)
    torch.mm(sums, conv_u.flatten(1).to(mean.dtype), out=total)
    x, positions = dense_map(x), x.size(2) * x.size(3)
    rows = mean, rstd, rstd * weight, total
    for part, back_u, back_x, made, dot, *of_images in _slabs(x, grad_u, grad_x, out, dots, *rows):
        center, inverse, scale, share = map(spread, of_images)
        y = torch.sub(part, center).mul_(inverse)
        d, product = _through(back_u, y, conv_u)
        to_u += product
        raw, product = _through(back_x, part, conv_x)
        to_x += product
        dot.copy_(torch.mul(d, y).sum((2, 3)))
        d.addcmul_(y, spread(dot) / -positions).sub_(share / positions)
        torch.addcmul(raw, d, scale, out=made)
    bias_part = sums.sum(0)[:, None] * bias
    for to, product in zip(to_convs, (spread(to_u.flatten(1) * weight + bias_part), to_x), strict=True):
        to.copy_(product)
    return out, *to_convs, dots, total


def _through(grad, x, conv):
    """What a 1x1 convolution passes back to its map, in the dtype of x or wider, and to its weights."""
    options = None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
    to_map, to_conv, _ = _convolution_backward(grad, x.to(conv.dtype), conv, *options)
    return to_map.to(torch.promote_types(x.dtype, torch.float32)), to_conv


gate_hidden_backward = Op("gate_hidden_backward", _backward_in_slabs)


@gate_hidden_backward.register_fake
def _alloc_backward(grad_u, grad_x, x, conv_u, conv_x, mean, rstd, weight, bias):
    convs = (torch.empty_like(w, memory_format=torch.contiguous_format) for w in (conv_u, conv_x))
    return like_map(x), *convs, mean.new_empty(mean.shape), mean.new_empty(mean.shape)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.grad_like = [(o.shape, o.dtype) for o in output]


def _backward(ctx, *grads):
    if all(grad is None for grad in grads):
        return (None,) * 7
    x = ctx.saved_tensors[0]
    layout = torch.channels_last if channels_last(x) else torch.contiguous_format
    grads = [
        x.new_zeros(shape, dtype=dtype) if grad is None else grad.contiguous(memory_format=layout)
        for grad, (shape, dtype) in zip(grads, ctx.grad_like, strict=True)
    ]
    to_map, to_u, to_x, to_weight, to_bias = gate_hidden_backward(*grads, *ctx.saved_tensors)
    return to_map, to_u, to_x, None, None, to_weight.sum(0), to_bias.sum(0)


gate_hidden.register_autograd(_backward, _setup)
