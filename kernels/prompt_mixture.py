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
Measured within ModalityPrompts, 5.6 of the bytes of the images, 64 x 3 x 256 x 128, on two cores of an AMD EPYC,
         forward and backward; the planes are a thirty-second of them.
Source   spec ckda 3.2, 3.3.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._prompts import columns_of, is_infrared, normalized_at, packed_sum, tile
from vifast.kernels._registry import Op, check
from vifast.kernels._small import counters, last_program
from vifast.kernels.prompt_statistics import moments
from vifast.kernels.purifier import sigmoid


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


@triton.jit
def _inner(x, down_ptr, c, j, common):
    """Row j of relu(down x), [cells], and the weights that it has of the columns."""
    down = tl.load(down_ptr + j * common + c, mask=(c >= 0) & (c < common), other=0.0).to(tl.float32)
    z = tl.sum(x * down[:, None], 0)
    return tl.where(z < 0.0, 0.0, z), down


@triton.jit
def _gate_at(x, down_ptr, up_ptr, c, common, gate):
    """sigmoid(up relu(down x)) for columns c of x, of which those in 0..common-1 are common; and its derivative."""
    logit = tl.zeros(x.shape, tl.float32)
    for j in range(0, gate):
        z, _ = _inner(x, down_ptr, c, j, common)
        up = tl.load(up_ptr + c * gate + j, mask=(c >= 0) & (c < common), other=0.0).to(tl.float32)
        logit += up[:, None] * z[None, :]
    return sigmoid(logit)


@triton.jit
def _mixture_kernel(
    hidden_ptr, modality_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr,
    raw_down_ptr, raw_up_ptr, normed_down_ptr, normed_up_ptr, out_ptr, specific, columns, cells, gate,
    BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """All columns of some cells of one sample."""
    r, g = tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    h, _, u, at, mask = normalized_at(
        hidden_ptr, modality_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, tl.program_id(0), r, g,
        specific, columns, cells,
    )  # fmt: skip
    if raw_down_ptr is not None:
        c, common = r - specific, columns - specific
        a, _ = _gate_at(h, raw_down_ptr, raw_up_ptr, c, common, gate)
        b, _ = _gate_at(u, normed_down_ptr, normed_up_ptr, c, common, gate)
        u = tl.where(c[:, None] >= 0, a * h + (1.0 - a) * (b * u), u)
    tl.store(out_ptr + at, u, mask=mask)


@prompt_mixture.register_kernel("cuda")
def _triton(hidden, modality, mean, rstd, weight, bias, raw_down, raw_up, normed_down, normed_up, batch, instance):
    inputs = hidden, modality, mean, rstd, weight, bias, raw_down, raw_up, normed_down, normed_up
    out = _alloc(*inputs, batch, instance)
    n, columns, cells = hidden.shape
    if out.numel() > 0:
        inputs = (x if x is None else x.detach().contiguous() for x in inputs)
        gate = 0 if raw_down is None else len(raw_down)
        with torch.cuda.device_of(hidden):
            _mixture_kernel[(n, triton.cdiv(cells, 32))](
                *inputs,
                out,
                len(weight) - columns,
                columns,
                cells,
                gate,
                BLOCK_R=tile(columns),
                BLOCK_G=32,
                num_warps=2,
            )
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
        likes = raw_down, raw_up, normed_down, normed_up
        gates = [x.to(like.dtype) for x, like in zip((*raw, *normed), likes, strict=True)]
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
    rows = hidden, weight, bias, raw_down, raw_up, normed_down, normed_up
    return tuple(hidden.new_empty(0) if x is None else torch.empty_like(x) for x in rows)


@prompt_mixture_backward.register_kernel("cpu")
def _cpu_backward(grad, *inputs):
    *tensors, batch, instance = inputs
    tensors = _dense(*tensors)
    out = _alloc_backward(grad, *tensors, batch, instance)
    gates = out[3:] if tensors[6] is not None else [None] * 4
    _C.prompt_mixture_backward(grad.contiguous(), *tensors, batch, instance, *out[:3], *gates, torch.get_num_threads())
    return out[0], *(x if of is None else x.to(of.dtype) for x, of in zip(out[1:], inputs[4:10], strict=True))


@triton.jit
def _through_gate(to_logit, x, down_ptr, up_ptr, to_down_ptr, to_up_ptr, start, c, common, gate):
    """Gradient to x from that of a gate's sigmoid's argument; its weights' are more than they were, from start on."""
    to_x = tl.zeros(x.shape, tl.float32)
    there = (c >= 0) & (c < common)
    for j in range(0, gate):
        z, down = _inner(x, down_ptr, c, j, common)
        up = tl.load(up_ptr + c * gate + j, mask=there, other=0.0).to(tl.float32)
        to_z = tl.where(z > 0.0, tl.sum(up[:, None] * to_logit, 0), 0.0)
        to_x += down[:, None] * to_z[None, :]
        more = there & (start > 0)
        to_down = tl.sum(x * to_z[None, :], 1) + tl.load(to_down_ptr + j * common + c, mask=more, other=0.0)
        to_up = tl.sum(to_logit * z[None, :], 1) + tl.load(to_up_ptr + c * gate + j, mask=more, other=0.0)
        tl.store(to_down_ptr + j * common + c, to_down, mask=there)
        tl.store(to_up_ptr + c * gate + j, to_up, mask=there)
    return to_x


@triton.jit
def _gradient_kernel(
    grad_ptr, hidden_ptr, modality_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr,
    raw_down_ptr, raw_up_ptr, normed_down_ptr, normed_up_ptr, through_ptr, to_u_ptr, sums_ptr, gates_ptr,
    to_weight_ptr, to_bias_ptr, to_raw_down_ptr, to_raw_up_ptr, to_normed_down_ptr, to_normed_up_ptr, counter_ptr,
    n, specific, columns, cells, gate,
    BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """A program for each sample: gradient of u, that of h which does not come through it, sums [B, 2, R] and the gates'
    [B, 4, gate S']; the last one adds those up, sample by sample."""
    sample, r = tl.program_id(0), tl.arange(0, BLOCK_R)
    c, common = r - specific, columns - specific
    size = gate * common
    total = tl.zeros((BLOCK_R,), tl.float32)
    slope = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, cells, BLOCK_G):
        h, y, u, at, mask = normalized_at(
            hidden_ptr, modality_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, sample, r,
            start + tl.arange(0, BLOCK_G), specific, columns, cells,
        )  # fmt: skip
        to_u = tl.load(grad_ptr + at, mask=mask, other=0.0)
        if raw_down_ptr is not None:
            inside = c[:, None] >= 0
            a, of_a = _gate_at(h, raw_down_ptr, raw_up_ptr, c, common, gate)
            b, of_b = _gate_at(u, normed_down_ptr, normed_up_ptr, c, common, gate)
            g = tl.where(inside, to_u, 0.0)
            of = gates_ptr + sample * 4 * size
            through = g * a + _through_gate(
                g * (h - b * u) * of_a, h, raw_down_ptr, raw_up_ptr, of, of + size, start, c, common, gate
            )
            of += 2 * size
            to_n = g * (1.0 - a) * b + _through_gate(
                g * (1.0 - a) * u * of_b, u, normed_down_ptr, normed_up_ptr, of, of + size, start, c, common, gate
            )
            to_u = tl.where(inside, to_n, to_u)
            tl.store(through_ptr + at, tl.where(inside, through, 0.0), mask=mask)
            tl.debug_barrier()  # the next cells add to gradients of gates that other threads may have stored
        tl.store(to_u_ptr + at, to_u, mask=mask)
        total += tl.sum(to_u, 1)
        slope += tl.sum(tl.where(mask, to_u * y, 0.0), 1)
    tl.store(sums_ptr + sample * 2 * columns + r, total, mask=r < columns)
    tl.store(sums_ptr + (sample * 2 + 1) * columns + r, slope, mask=r < columns)
    if last_program(counter_ptr, n):
        q = tl.arange(0, BLOCK_P)
        which = tl.where(q < specific, 0, tl.where(q < 2 * specific, 1, 2))
        row = tl.where(q < specific, q, q - specific)
        to_bias = tl.zeros((BLOCK_P,), tl.float32)
        to_weight = tl.zeros((BLOCK_P,), tl.float32)
        for b in range(0, n):
            own = (row < columns) & ((which == 2) | (which == is_infrared(modality_ptr, b)))
            to_bias += tl.load(sums_ptr + b * 2 * columns + row, mask=own, other=0.0)
            to_weight += tl.load(sums_ptr + (b * 2 + 1) * columns + row, mask=own, other=0.0)
        tl.store(to_bias_ptr + q, to_bias, mask=row < columns)
        tl.store(to_weight_ptr + q, to_weight, mask=row < columns)
        if raw_down_ptr is not None:
            for start in range(0, size, BLOCK_W):
                k = start + tl.arange(0, BLOCK_W)
                of_raw_down = tl.zeros((BLOCK_W,), tl.float32)
                of_raw_up = tl.zeros((BLOCK_W,), tl.float32)
                of_normed_down = tl.zeros((BLOCK_W,), tl.float32)
                of_normed_up = tl.zeros((BLOCK_W,), tl.float32)
                for b in range(0, n):
                    at_k = gates_ptr + b * 4 * size + k
                    of_raw_down += tl.load(at_k, mask=k < size, other=0.0)
                    of_raw_up += tl.load(at_k + size, mask=k < size, other=0.0)
                    of_normed_down += tl.load(at_k + 2 * size, mask=k < size, other=0.0)
                    of_normed_up += tl.load(at_k + 3 * size, mask=k < size, other=0.0)
                tl.store(to_raw_down_ptr + k, of_raw_down, mask=k < size)
                tl.store(to_raw_up_ptr + k, of_raw_up, mask=k < size)
                tl.store(to_normed_down_ptr + k, of_normed_down, mask=k < size)
                tl.store(to_normed_up_ptr + k, of_normed_up, mask=k < size)


@triton.jit
def _hidden_kernel(
    hidden_ptr, modality_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, through_ptr, to_u_ptr, sums_ptr, out_ptr,
    n, specific, columns, cells,
    COMMON: tl.constexpr, BATCH: tl.constexpr, INSTANCE: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """All columns of some cells of one sample."""
    sample, r, g = tl.program_id(0), tl.arange(0, BLOCK_R), tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    _, y, _, at, mask = normalized_at(
        hidden_ptr, modality_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, sample, r, g, specific, columns, cells
    )
    m = is_infrared(modality_ptr, sample)
    center = tl.load(sums_ptr + sample * 2 * columns + r, mask=(r >= specific) & (r < columns), other=0.0) / cells
    slope = tl.load(sums_ptr + (sample * 2 + 1) * columns + r, mask=(r >= specific) & (r < columns), other=0.0) / cells
    if not INSTANCE:
        center = tl.zeros_like(center)
        slope = tl.zeros_like(slope)
    if BATCH:
        count = 0
        of_batch = tl.zeros((BLOCK_R,), tl.float32)
        slope_of_batch = tl.zeros((BLOCK_R,), tl.float32)
        for start in range(0, n, BLOCK_B):
            b = start + tl.arange(0, BLOCK_B)
            own = (b < n) & ((tl.load(modality_ptr + b, mask=b < n, other=0) != 0).to(tl.int32) == m)
            count += tl.sum(own.to(tl.int32))
            there = own[:, None] & (r[None, :] < specific)
            at_sums = sums_ptr + b[:, None] * 2 * columns + r[None, :]
            of_batch += tl.sum(tl.load(at_sums, mask=there, other=0.0), 0)
            slope_of_batch += tl.sum(tl.load(at_sums + columns, mask=there, other=0.0), 0)
        size = (count * cells).to(tl.float32)
        center = tl.where(r < specific, of_batch / size, center)
        slope = tl.where(r < specific, slope_of_batch / size, slope)
    row = tl.where(r < specific, r + m * specific, r + specific)
    scale = tl.load(rstd_ptr + sample * columns + r, mask=r < columns, other=0.0)
    scale *= tl.load(weight_ptr + row, mask=r < columns, other=0.0).to(tl.float32)
    to_u = tl.load(to_u_ptr + at, mask=mask, other=0.0)
    out = scale[:, None] * (to_u - center[:, None] - y * slope[:, None])
    if COMMON:
        out += tl.load(through_ptr + at, mask=mask, other=0.0)
    tl.store(out_ptr + at, out, mask=mask)


@prompt_mixture_backward.register_kernel("cuda")
def _triton_backward(grad, *inputs):
    *tensors, batch, instance = inputs
    to_hidden, *to_parameters = _alloc_backward(grad, *tensors, batch, instance)
    (n, columns, cells), hidden, raw_down = tensors[0].shape, tensors[0], tensors[6]
    if hidden.numel() == 0:
        return to_hidden, *(x.zero_() for x in to_parameters)
    tensors = [x if x is None else x.detach().contiguous() for x in tensors]
    packed, gate = len(tensors[4]), 0 if raw_down is None else len(raw_down)
    common = 2 * columns - packed
    through, to_u = torch.empty_like(to_hidden), torch.empty_like(to_hidden)
    sums, gates = hidden.new_empty(n, 2, columns), hidden.new_empty(n, 4, gate * common)
    sizes, block = (packed - columns, columns, cells), tile(columns)
    with torch.cuda.device_of(hidden):
        _gradient_kernel[(n,)](
            grad.contiguous(), *tensors, through, to_u, sums, gates, *to_parameters, counters(hidden), n, *sizes, gate,
            BLOCK_R=block, BLOCK_G=32, BLOCK_P=tile(packed), BLOCK_W=tile(gate * common, 128), num_warps=4,
        )  # fmt: skip
        _hidden_kernel[(n, triton.cdiv(cells, 32))](
            *tensors[:6], through, to_u, sums, to_hidden, n, *sizes,
            COMMON=raw_down is not None, BATCH=batch, INSTANCE=instance, BLOCK_B=32, BLOCK_R=block, BLOCK_G=32,
            num_warps=2,
        )  # fmt: skip
    return to_hidden, *to_parameters


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
