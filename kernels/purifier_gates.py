r"""purifier_gates: a purifier's masks before their sigmoid, of the map's instance normalisation and of the map itself.

    y = (x - mean) rstd      gate_u = A_2 relu(A_1 (y weight + bias))      gate_x = E_2 relu(E_1 x)

Shapes   x [N, C, H, W]; down_u, down_x = A_1, E_1 [K, C, 1, 1], up_u, up_x = A_2, E_2 [C, K, 1, 1] of the dtype to
         multiply in; mean, rstd [N, C]; weight, bias [C]. Gates [N, C, H, W] in that dtype; and for the
         backward what the relus leave, [N, K, H, W]. Rows float32 (float64 for float64).
instance whether mean and rstd are those of x: the gradient through them then goes to x in the same pass. They get none.
Slabs    some images at a time are normalised into memory that stays in cache, and multiplied there: even the plain
         convolutions of 40 x 2048 x 24 x 9 took about half their time in slabs. A product of x with A_1 scaled for each
         image would write N K C weights, for K = 128 here 0.6 of a map; and it cancels where the mean is large: at 30
         deviations its float32 error was 10 times that of this.
Backward normalises again. With d what A_1 passes back, P positions and sums over them for each channel,
         x gets weight rstd (d - sum d / P - y sum(d y) / P), or weight rstd d without `instance`, and what E_1 passes
         back; weight gets sum(d y), bias sum d.
Bits     the products are the platform's convolutions; with another number of threads they may round otherwise.
Memory   results and a few slabs, nothing kept but them and the arguments; backward the gradient of x and a few slabs.
Floor    the products; one read of x and one write of both gates forward, each the other way backward and x again.
Measured with the rest of the purifier 1.2 of the bare products for maps of 60 x 2048 x 24 x 9 on two cores of an AMD
         EPYC, forward and backward.
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


def purifier_gates_ref(
    x: Tensor,
    down_u: Tensor,
    up_u: Tensor,
    down_x: Tensor,
    up_x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    instance: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    u = normalized(x.to(mean.dtype), mean, rstd, weight, bias, instance)
    hidden_u, hidden_x = conv2d(u.to(down_u.dtype), down_u).relu(), conv2d(x.to(down_x.dtype), down_x).relu()
    return conv2d(hidden_u, up_u), conv2d(hidden_x, up_x), hidden_u, hidden_x


purifier_gates = Op("purifier_gates", purifier_gates_ref)


@purifier_gates.register_fake
def _alloc(x, down_u, up_u, down_x, up_x, mean, rstd, weight, bias, instance):
    (n, c, *size), hidden = x.shape, down_u.size(0)
    shapes = [list(a.shape) for a in (down_u, up_u, down_x, up_x, mean, rstd, weight, bias)]
    fits = len(size) == 2 and shapes == [[hidden, c, 1, 1], [c, hidden, 1, 1]] * 2 + [[n, c]] * 2 + [[c]] * 2
    check(fits, lambda: f"purifier_gates: {shapes} do not fit a map {list(x.shape)}")
    layout = torch.channels_last if channels_last(x) else torch.contiguous_format
    made = ((c, up_u), (c, up_x), (hidden, down_u), (hidden, down_x))
    return tuple(torch.empty((n, k, *size), dtype=w.dtype, device=x.device, memory_format=layout) for k, w in made)


def _slabs(x, *others):
    """The map and others of its images, cut alike."""
    images = max(SLAB.get(x.device.type, SLAB["cuda"]) // max(x[:1].numel() * x.element_size(), 1), 1)
    return zip(*(a.split(images) for a in (x, *others)), strict=True)


@purifier_gates.register_kernel("cpu")
@purifier_gates.register_kernel("cuda")
def _in_slabs(x, down_u, up_u, down_x, up_x, mean, rstd, weight, bias, instance):
    gates, hidden = _pairs(_alloc(x, down_u, up_u, down_x, up_x, mean, rstd, weight, bias, instance))
    whole = x.is_cuda or channels_last(x)  # oneDNN multiplies these where they lie, and copies others to another layout
    x, scale, bias = dense_map(x), rstd * weight, spread(bias[None])
    with torch.autocast(x.device.type, enabled=False):
        for part, *made, center, factor in _slabs(x, *gates, *hidden, spread(mean), spread(scale)):
            u = torch.addcmul(bias, torch.sub(part, center), factor)
            sides = zip(*_pairs(made), (u, part), (down_u, down_x), (up_u, up_x), strict=True)
            for gate, relu, source, down, up in sides:
                relu.copy_(conv2d(source.to(down.dtype), down).relu_())
                if not whole:
                    gate.copy_(conv2d(relu, up))
        if whole:
            layout = torch.channels_last if channels_last(x) else torch.contiguous_format
            products = (conv2d(*pair) for pair in zip(hidden, (up_u, up_x), strict=True))
            gates = [gate.contiguous(memory_format=layout) for gate in products]
    return *gates, *hidden


def _pairs(four):
    return four[:2], four[2:]


def _backward_in_slabs(
    grad_u: Tensor,
    grad_x: Tensor,
    hidden_u: Tensor,
    hidden_x: Tensor,
    x: Tensor,
    down_u: Tensor,
    up_u: Tensor,
    down_x: Tensor,
    up_x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    instance: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of the convolutions, and of weight and bias by image."""
    convs, acc = (down_u, up_u, down_x, up_x), mean.dtype
    out, *to_convs, dots, total = _alloc_backward(
        grad_u, grad_x, hidden_u, hidden_x, x, *convs, mean, rstd, weight, bias, instance
    )
    sums = [torch.zeros_like(w, dtype=acc) for w in convs]
    hidden_sum, wide_down, positions = sums[0].new_zeros(len(down_u)), down_u.flatten(1).to(acc), x.size(2) * x.size(3)
    maps, rows = (grad_u, grad_x, hidden_u, hidden_x, out), (dots, total, mean, rstd, rstd * weight)
    for part, back_u, back_x, relu_u, relu_x, made, dot, sum_d, *of_images in _slabs(dense_map(x), *maps, *rows):
        center, inverse, scale = map(spread, of_images)
        y = torch.sub(part, center).mul_(inverse)
        d, at_hidden, *products_u = _through(back_u, relu_u, y, down_u, up_u)
        raw, _, *products_x = _through(back_x, relu_x, part, down_x, up_x)
        for done, product in zip(sums, (*products_u, *products_x), strict=True):
            done.add_(product)
        by_image = at_hidden.sum((2, 3), dtype=acc)
        hidden_sum += by_image.sum(0)
        sum_d.copy_(by_image @ wide_down)
        dot.copy_(torch.mul(d, y).sum((2, 3)))
        if instance:
            d.addcmul_(y, spread(dot) / -positions).sub_(spread(sum_d) / positions)
        torch.addcmul(raw, d, scale, out=made)
    sums[0] = sums[0] * spread(weight) + spread(hidden_sum[:, None] * bias)
    return out, *(to.copy_(product) for to, product in zip(to_convs, sums, strict=True)), dots, total


def _through(grad, hidden, x, down, up):
    """What a gate passes back to its map (in the dtype of x or wider), to its hidden layer, to ``down`` and ``up``."""
    at_hidden, to_up = _through_product(grad, hidden, up)
    at_hidden.masked_fill_(hidden <= 0, 0.0)
    to_map, to_down = _through_product(at_hidden, x.to(down.dtype), down)
    return to_map.to(torch.promote_types(x.dtype, torch.float32)), at_hidden, to_down, to_up


def _through_product(grad, x, conv):
    options = None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
    return _convolution_backward(grad, x, conv, *options)[:2]


purifier_gates_backward = Op("purifier_gates_backward", _backward_in_slabs)


@purifier_gates_backward.register_fake
def _alloc_backward(
    grad_u, grad_x, hidden_u, hidden_x, x, down_u, up_u, down_x, up_x, mean, rstd, weight, bias, instance
):
    convs = (torch.empty_like(w, memory_format=torch.contiguous_format) for w in (down_u, up_u, down_x, up_x))
    return like_map(x), *convs, mean.new_empty(mean.shape), mean.new_empty(mean.shape)


def _setup(ctx, inputs, output):
    *tensors, ctx.instance = inputs
    ctx.save_for_backward(*output[2:], *tensors)
    ctx.mark_non_differentiable(*output[2:])


def _backward(ctx, *grads):
    if all(grad is None for grad in grads):
        return (None,) * 10
    *_, x, down_u, _, down_x, _, _, _, _, _ = ctx.saved_tensors
    layout = torch.channels_last if channels_last(x) else torch.contiguous_format
    grads = [
        torch.zeros_like(x, dtype=conv.dtype, memory_format=layout)
        if grad is None
        else grad.contiguous(memory_format=layout)
        for grad, conv in zip(grads[:2], (down_u, down_x), strict=True)
    ]
    to_map, *to_convs, to_weight, to_bias = purifier_gates_backward(*grads, *ctx.saved_tensors, ctx.instance)
    return to_map, *to_convs, None, None, to_weight.sum(0), to_bias.sum(0), None


purifier_gates.register_autograd(_backward, _setup)
