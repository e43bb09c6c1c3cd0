r"""prompt_mixture: from hidden planes of prompts to what their second linear maps are given.

    u = (h - mean) rstd weight + bias          specific columns, of a batch normalisation, end here
    m = a h + (1 - a) b u                      common ones, of an instance normalisation, with the gates
        a = sigmoid(A2 relu(A1 h)),  b = sigmoid(B2 relu(B1 u))

Shapes   hidden, out [B, R, G], modality [B] int64, mean, rstd [B, R] float32 (float64 for float64); weight, bias [P];
         A1, B1 [gate, S'], A2, B2 [S', gate], or None without common columns. Columns as in kernels/_prompts.py.
Backward through mean and rstd as well, where they are those of `hidden`: of all samples of the modality for specific
         columns (`batch`), of its own plane for common ones (`instance`). With d = du weight and y = (h - mean) rstd,
         dh = rstd (d - mean d - y mean(d y)), the means over what the statistics are of. They get no gradient.
Defined  a NaN stays in its sample; its gradient goes to all of its modality, as the statistics did.
Memory   out; sums for each sample and column, on a GPU a gradient of u.
Floor    one read and one write of 4 B R G bytes, backward two reads and one write.
Source   spec ckda 3.2, 3.3.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._prompts import columns_of, packed_sum
from vifast.kernels._registry import Op, check
from vifast.kernels.prompt_statistics import moments


def _gate(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return (up.to(x.dtype) @ (down.to(x.dtype) @ x).relu()).sigmoid()


def prompt_mixture_ref(
    hidden: Tensor,
    modality: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    raw_down: Tensor | None,
    raw_up: Tensor | None,
    normed_down: Tensor | None,
    normed_up: Tensor | None,
    batch: bool,
    instance: bool,
) -> Tensor:
    specific = len(weight) - hidden.size(1)
    if batch or instance:  # the given values, with the derivative of the statistics of hidden
        center, variance = moments(hidden, modality, specific)
        column = torch.arange(hidden.size(1), device=hidden.device)
        of_hidden = torch.where(column < specific, batch, instance)
        mean = torch.where(of_hidden, mean + (center - center.detach()), mean)
        rstd = torch.where(of_hidden, rstd - 0.5 * rstd**3 * (variance - variance.detach()), rstd)
    columns = columns_of(modality, specific, len(weight))
    scale, shift = (x.to(hidden.dtype)[columns] for x in (weight, bias))
    u = (hidden - mean[..., None]) * (rstd * scale)[..., None] + shift[..., None]
    if raw_down is None:
        return u
    h, n = hidden[:, specific:], u[:, specific:]
    share = _gate(h, raw_down, raw_up)
    return torch.cat((u[:, :specific], share * h + (1 - share) * (_gate(n, normed_down, normed_up) * n)), 1)


prompt_mixture = Op("prompt_mixture", prompt_mixture_ref)


@prompt_mixture.register_fake
def _alloc(
    hidden, modality, mean, rstd, weight, bias, raw_down, raw_up, normed_down, normed_up, batch, instance
):  # fmt: skip
    fits = hidden.dim() == 3 and mean.shape == rstd.shape == hidden.shape[:2] and modality.shape == hidden.shape[:1]
    fits = fits and weight.shape == bias.shape and hidden.size(1) <= len(weight) <= 2 * hidden.size(1)
    got = ", ".join(str(list(x.shape)) for x in (hidden, modality, mean, rstd, weight, bias))
    check(fits, lambda: f"prompt_mixture: expected [B, R, G], [B], [B, R] twice, [P] twice, got {got}")
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


def _dense(hidden: Tensor, modality: Tensor, *rows: Tensor | None) -> list[Tensor | None]:
    return [hidden.contiguous(), modality.contiguous(), *(x if x is None else float_rows(x) for x in rows)]


@prompt_mixture.register_kernel("cpu")
def _cpu(hidden, modality, mean, rstd, weight, bias, raw_down, raw_up, normed_down, normed_up, batch, instance):
    inputs = hidden, modality, mean, rstd, weight, bias, raw_down, raw_up, normed_down, normed_up
    out = _alloc(*inputs, batch, instance)
    _C.prompt_mixture(*_dense(*inputs), out, torch.get_num_threads())
    return out


def _gate_backward(
    to_share: Tensor, share: Tensor, x: Tensor, down: Tensor, up: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of a gate's values to those of x, of its first and of its second weights."""
    down, up = down.to(x.dtype), up.to(x.dtype)
    inner = (down @ x).relu()
    to_logit = to_share * share * (1 - share)
    to_inner = torch.where(inner > 0, up.T @ to_logit, 0.0)
    return down.T @ to_inner, (to_inner @ x.mT).sum(0), (to_logit @ inner.mT).sum(0)


def _backward_ref(
    grad: Tensor,
    hidden: Tensor,
    modality: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    raw_down: Tensor | None,
    raw_up: Tensor | None,
    normed_down: Tensor | None,
    normed_up: Tensor | None,
    batch: bool,
    instance: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    specific, cells = len(weight) - hidden.size(1), hidden.size(2)
    columns = columns_of(modality, specific, len(weight))
    scale, shift = (x.to(hidden.dtype)[columns][..., None] for x in (weight, bias))
    y = (hidden - mean[..., None]) * rstd[..., None]
    through, to_u = torch.zeros_like(hidden), grad
    gates = [hidden.new_empty(0)] * 4
    if raw_down is not None:
        h, n, g = hidden[:, specific:], (y * scale + shift)[:, specific:], grad[:, specific:]
        a, b = _gate(h, raw_down, raw_up), _gate(n, normed_down, normed_up)
        to_h, *raw = _gate_backward(g * (h - b * n), a, h, raw_down, raw_up)
        to_n, *normed = _gate_backward(g * (1 - a) * n, b, n, normed_down, normed_up)
        gates = [
            x.to(like.dtype)
            for x, like in zip((*raw, *normed), (raw_down, raw_up, normed_down, normed_up), strict=True)
        ]
        through[:, specific:] = g * a + to_h
        to_u = torch.cat((grad[:, :specific], g * (1 - a) * b + to_n), 1)
    sums = torch.stack((to_u.sum(2), (to_u * y).sum(2)), 2)  # [B, R, 2]
    to_bias, to_weight = packed_sum(sums, columns, len(weight)).unbind(1)
    same = (modality != 0)[:, None] == (modality != 0)
    over_batch = torch.where(same[..., None, None], sums[:, :specific], 0.0).sum(1) / same.sum(1)[:, None, None]
    means = torch.cat((over_batch * batch, sums[:, specific:] * instance), 1) / cells
    to_hidden = through + (rstd[..., None] * scale) * (to_u - means[..., :1] - y * means[..., 1:])
    return to_hidden, to_weight.to(weight.dtype), to_bias.to(bias.dtype), *gates


prompt_mixture_backward = Op("prompt_mixture_backward", _backward_ref)


@prompt_mixture_backward.register_fake
def _alloc_backward(
    grad, hidden, modality, mean, rstd, weight, bias, raw_down, raw_up, normed_down, normed_up, batch, instance
):
    gates = raw_down, raw_up, normed_down, normed_up
    gates = (hidden.new_empty(0) if x is None else torch.empty_like(x) for x in gates)
    return torch.empty_like(hidden), torch.empty_like(weight), torch.empty_like(bias), *gates


@prompt_mixture_backward.register_kernel("cpu")
def _cpu_backward(grad, *inputs):
    *tensors, batch, instance = inputs
    tensors = _dense(*tensors)
    out = _alloc_backward(grad, *tensors, batch, instance)
    gates = out[3:] if tensors[6] is not None else [None] * 4
    _C.prompt_mixture_backward(grad.contiguous(), *tensors, batch, instance, *out[:3], *gates, torch.get_num_threads())
    like = inputs[4:10]
    return out[0], *(x if of is None else x.to(of.dtype) for x, of in zip(out[1:], like, strict=True))


def _setup(ctx, inputs, output):
    *tensors, ctx.batch, ctx.instance = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    if grad is None:
        return (None,) * 12
    saved = ctx.saved_tensors
    to_hidden, to_weight, to_bias, *gates = prompt_mixture_backward(grad, *saved, ctx.batch, ctx.instance)
    gates = (None if like is None else g for g, like in zip(gates, saved[6:], strict=True))
    return to_hidden, None, None, None, to_weight, to_bias, *gates, None, None


prompt_mixture.register_autograd(_backward, _setup)
