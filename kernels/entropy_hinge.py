r"""entropy_hinge: how much less certain one row of logits is than another, exp(max(0, H(q) - H(p) + margin)) - 1.

H is the entropy of the softmax of a row; p = softmax(raw_i), q = softmax(purified_i). H(q) - H(p) is summed from p - q,
not subtracted, so it keeps its digits where the two are close.

Shapes    raw, purified [N, C], one dtype; loss [N] float32; saved [5, N] float64: log-sum-exp of both, H(p), H(q),
          slope.
Gradient  dH(p)/draw = -p (log p + H(p)); slope = dloss/dH(q) = -dloss/dH(p), 0 unless the hinge is open.
Edges     no columns: entropies are 0. A non-finite logit: a non-finite loss of its row only.
Memory    loss and saved.
Floor     2*N*C elements read forward; read and written backward.
Measured  11 and 6.0 of a pass over the bytes for 120 x 395 and 512 x 713 on two cores of an AMD EPYC, forward and
          backward: two exponentials an element.
Source    spec idkl 3, L_F.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels._softmax import empty_pair, gpu_pair, pair_terms, pair_tops, row_launch, total


def entropy_hinge_ref(raw: Tensor, purified: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    acc = torch.promote_types(raw.dtype, torch.float32)
    raw, purified = raw.double(), purified.double()  # entropies of close rows cancel in float32
    log_p, log_q = raw.log_softmax(1), purified.log_softmax(1)
    h_p, h_q = -(log_p.exp() * log_p).sum(1), -(log_q.exp() * log_q).sum(1)
    gap = (h_q - h_p + margin).relu()
    slope = torch.where(gap == 0, 0.0, gap.exp())
    return gap.expm1().to(acc), torch.stack((raw.logsumexp(1), purified.logsumexp(1), h_p, h_q, slope))


@triton.jit
def _forward_kernel(raw_ptr, purified_ptr, loss_ptr, saved_ptr, n, n_cols, margin, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top_a, top_b = pair_tops(raw_ptr, purified_ptr, row, n, n_cols, n_cols, BLOCK)
    z_a = tl.zeros((BLOCK,), tl.float32)
    z_b = tl.zeros((BLOCK,), tl.float32)
    w = tl.zeros((BLOCK,), tl.float32)
    b_d = tl.zeros((BLOCK,), tl.float32)
    a_a = tl.zeros((BLOCK,), tl.float32)
    b_a = tl.zeros((BLOCK,), tl.float32)
    b_b = tl.zeros((BLOCK,), tl.float32)
    w_a = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x, y, d, e_a, e_b, e_w = pair_terms(raw_ptr, purified_ptr, j, row, n, n_cols, n_cols, top_a, top_b)
        z_a += e_a
        z_b += e_b
        w += e_w
        b_d += e_b * d
        a_a += e_a * x
        b_a += e_b * x
        b_b += e_b * y
        w_a += e_w * x
    s_a, s_b, s_w = total(z_a), total(z_b), total(w)
    h_p, h_q = tl.log(s_a) - total(a_a) / s_a, tl.log(s_b) - total(b_b) / s_b
    close = s_w > -0.5 * s_b  # otherwise the sums that carry close rows cancel
    ratio = tl.log(tl.where(close, 1.0 + s_w / s_b, s_a / s_b))
    # H(q) - H(p) = sum (p - q) log p + sum q (log p - log q), both of first order in the difference of the rows.
    first = (total(w_a) - total(b_a) * s_w / s_b) / (s_b + s_w)
    gap = tl.where(close & (tl.abs(first) < 1.0), first + total(b_d) / s_b - ratio, h_q - h_p) + margin
    bad = gap - gap != 0.0  # an infinite entropy comes from an infinite logit and must not close the hinge
    gap = tl.where(gap < 0.0, 0.0, gap)
    rise = gap * (1.0 + gap * (0.5 + gap * (1.0 / 6 + gap / 24)))
    loss = tl.where(gap < 1e-3, rise, tl.exp(gap) - 1.0)
    tl.store(loss_ptr + row, tl.where(bad, float("nan"), loss).to(tl.float32))
    tl.store(saved_ptr + row, top_a.to(tl.float64) + tl.log(s_a))
    tl.store(saved_ptr + n + row, top_b.to(tl.float64) + tl.log(s_b))
    tl.store(saved_ptr + 2 * n + row, h_p)
    tl.store(saved_ptr + 3 * n + row, h_q)
    tl.store(saved_ptr + 4 * n + row, tl.where(bad, float("nan"), tl.where(gap == 0.0, 0.0, tl.exp(gap))))


@triton.jit
def _gradient(x_ptr, out_ptr, at, inside, lse, h, scale):
    """scale * p * (log p + H) of one row."""
    log_p = (tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float64) - lse).to(tl.float32)
    tl.store(out_ptr + at, scale * tl.exp(log_p) * (log_p + h.to(tl.float32)), mask=inside)


@triton.jit
def _backward_kernel(
    grad_ptr, saved_ptr, raw_ptr, purified_ptr, grad_raw_ptr, grad_purified_ptr, n, n_cols, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = row * n_cols + j
    saved_ptr += row
    slope = tl.load(grad_ptr + row) * tl.load(saved_ptr + 4 * n).to(tl.float32)
    _gradient(raw_ptr, grad_raw_ptr, at, j < n_cols, tl.load(saved_ptr), tl.load(saved_ptr + 2 * n), slope)
    _gradient(
        purified_ptr, grad_purified_ptr, at, j < n_cols, tl.load(saved_ptr + n), tl.load(saved_ptr + 3 * n), -slope
    )


entropy_hinge = Op("entropy_hinge", entropy_hinge_ref)


@entropy_hinge.register_fake
def _alloc(raw, purified, margin):
    fits = raw.dim() == 2 and raw.shape == purified.shape
    check(fits, lambda: f"entropy_hinge: expected two [N, C], got {list(raw.shape)} and {list(purified.shape)}")
    n, acc = raw.size(0), torch.promote_types(raw.dtype, torch.float32)
    return raw.new_empty(n, dtype=acc), raw.new_empty(5, n, dtype=torch.float64)


@entropy_hinge.register_kernel("cpu")
def _cpu(raw, purified, margin):
    if raw.numel() == 0:
        return entropy_hinge_ref(raw, purified, margin)
    out = _alloc(raw, purified, margin)
    _C.entropy_hinge_forward(float_rows(raw), float_rows(purified), margin, *out, torch.get_num_threads())
    return out


@entropy_hinge.register_kernel("cuda")
def _triton(raw, purified, margin):
    if raw.numel() == 0:
        return entropy_hinge_ref(raw, purified, margin)
    out = _alloc(raw, purified, margin)
    x, y = gpu_pair(raw, purified)
    n, n_cols = x.shape
    with torch.cuda.device_of(x):
        _forward_kernel[(n,)](x, y, *out, n, n_cols, margin, **row_launch(n_cols))
    return out


def _backward_ref(grad: Tensor, saved: Tensor, raw: Tensor, purified: Tensor) -> tuple[Tensor, Tensor]:
    lse_p, lse_q, h_p, h_q, slope = saved.unsqueeze(2)
    slope = slope * grad.unsqueeze(1)
    log_p, log_q = raw - lse_p, purified - lse_q
    grad_raw, grad_purified = slope * log_p.exp() * (log_p + h_p), -slope * log_q.exp() * (log_q + h_q)
    return grad_raw.to(raw.dtype), grad_purified.to(purified.dtype)


entropy_hinge_backward = Op("entropy_hinge_backward", _backward_ref)


@entropy_hinge_backward.register_fake
def _alloc_backward(grad, saved, raw, purified):
    return empty_pair(raw, purified)


@entropy_hinge_backward.register_kernel("cpu")
def _cpu_backward(grad, saved, raw, purified):
    x, y = float_rows(raw), float_rows(purified)
    out = empty_pair(x, y)
    _C.entropy_hinge_backward(grad.contiguous(), saved, x, y, *out, torch.get_num_threads())
    return tuple(g.to(raw.dtype) for g in out)


@entropy_hinge_backward.register_kernel("cuda")
def _triton_backward(grad, saved, raw, purified):
    out = empty_pair(raw, purified)
    if raw.numel() == 0:
        return out
    x, y = gpu_pair(raw, purified)
    n, n_cols = x.shape
    launch = row_launch(n_cols)
    with torch.cuda.device_of(x):
        grid = (n, triton.cdiv(n_cols, launch["BLOCK"]))
        _backward_kernel[grid](grad.contiguous(), saved, x, y, *out, n, n_cols, **launch)
    return out


def _setup(ctx, inputs, output):
    raw, purified, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], raw, purified)


def _backward(ctx, grad, _):
    if grad is None:
        return None, None, None
    return *entropy_hinge_backward(grad, *ctx.saved_tensors), None


entropy_hinge.register_autograd(_backward, _setup)
