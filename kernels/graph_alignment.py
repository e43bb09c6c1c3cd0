r"""graph_alignment: Kullback-Leibler divergence between the rows of two graphs of the same nodes.

    u_ij = d(a_i, a_j), v_ij = d(b_i, b_j)     p_i = softmax_j u_ij, q_i = softmax_j v_ij     delta = v - u
    loss_i = KL(q_i || p_i) = sum_j q_ij delta_ij - (lse v_i - lse u_i);  symmetric adds KL(p_i || q_i)

    scale None   d = sqrt(max(||x - y||^2, floor)), no gradient through a clamped entry;
    otherwise    d = scale * ||x - y||^2. With unit rows and scale -1/(2 t) that is cos / t less a constant of the row,
                 which the softmax does not see, and close rows lose no digits.

Shapes   a [N, D], b [N, E], one dtype and device; diagonal: whether j = i takes part. Out: factor * loss [N], or [] for
         its "mean" or "sum", float32 (float64 for float64); saved [6, N] float64 (largest u, 1 / sum exp(u - largest),
         sum_j p delta, and the same of v, q), and of few rows (KEEP_DISTANCES on the CPU, SMALL on a GPU) both matrices
         of distances: roots, or squares for a scale.
Defined  a row without columns (N = 1 without diagonal) has loss 0.
Backward du = p - q - [p (delta - <p, delta>)], dv = q (delta - <q, delta>) + [q - p], brackets where symmetric; with
         s_ij = (du_ij + du_ji) * slope_ij, grad_i = a_i sum_j s_ij - sum_j s_ij a_j, and the same for b.
Exact    distances are float32 products of mean-free rows; everything of a row is float64 from there on, because the
         difference of two near graphs is far smaller than its terms.
Memory   mean-free rows of both sets (twice on the CPU: as rows and packed), the gradients, O(N) state, two tiles (CPU)
         or two strips of 512 x N (CUDA): no N x N but what few rows keep.
Launches on a GPU up to SMALL rows one forward and one backward, see graph_alignment_small; more are streamed.
Floor    3 products N x N x (D + E); on the CPU 2, where each pair is multiplied once, and 1.5 where distances are kept.
Measured 1.3, 0.79 and 0.42 of the platform's products (60, 120, 2048 rows of 2048, both ways, 2 cores of an AMD EPYC).
Source   specs idkl 5 (graphs), dakd 11 (relations), ckda 5.3 (affinities).
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import centered, float_rows, product, weighted_rows
from vifast.kernels._reduction import grad_of_rows, reduced, reduced_shape
from vifast.kernels._registry import Op, check
from vifast.kernels._small import SMALL
from vifast.kernels._tile import gpu_rows
from vifast.kernels.graph_alignment_small import align, pull_few
from vifast.kernels.graph_alignment_streamed import STRIP, fold, pull_rows

SAVED = 6
KEEP_DISTANCES = 256  # rows: at most kSmall of csrc/packed_rows.h


def _sqdist(x: Tensor) -> Tensor:
    x = x - x.detach().nan_to_num(0.0, 0.0, 0.0).mean(0)
    sq = x.square().sum(1)
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    return (sq.unsqueeze(1) + sq - 2 * (x @ x.T)).clamp(min=0.0).masked_fill(own, 0.0)


def _logits(sq: Tensor, scale: float | None, floor: float) -> Tensor:
    sq = sq.double()
    return sq.clamp(min=floor).sqrt() if scale is None else scale * sq


def graph_alignment_ref(
    a: Tensor,
    b: Tensor,
    scale: float | None,
    floor: float,
    diagonal: bool,
    symmetric: bool,
    precision: str,
    reduction: str,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = alloc(a, b, scale, floor, diagonal, symmetric, precision, reduction, factor)
    _, _, kept_a, kept_b = (torch.zeros_like(x) for x in out)
    acc = torch.promote_types(a.dtype, torch.float32)
    x, y = a.to(acc), b.to(acc)
    if len(x) <= (0 if diagonal else 1):
        return reduced(x.sum(1) * 0.0, reduction), x.new_zeros(SAVED, len(x), dtype=torch.float64), kept_a, kept_b
    sq_a, sq_b = _sqdist(x), _sqdist(y)
    u, v = _logits(sq_a, scale, floor), _logits(sq_b, scale, floor)
    skip = torch.zeros_like(u, dtype=torch.bool) if diagonal else torch.eye(len(x), dtype=torch.bool, device=x.device)
    log_p, log_q = (t.masked_fill(skip, -torch.inf).log_softmax(1) for t in (u, v))
    ratio = (log_q - log_p).masked_fill(skip, 0.0)
    p, q = log_p.exp(), log_q.exp()
    loss = ((q - p) * ratio).sum(1) if symmetric else (q * ratio).sum(1)
    saved = [row for logits, weights in ((u, p), (v, q)) for row in _row_state(logits, weights, v - u, skip)]
    if kept_a.dim() == 2:
        kept_a, kept_b = (t.detach().to(acc, copy=True) for t in ((u, v) if scale is None else (sq_a, sq_b)))
    return factor * reduced(loss.to(acc), reduction), torch.stack(saved).detach(), kept_a, kept_b


def _row_state(logits, weights, delta, skip):
    logits = logits.masked_fill(skip, -torch.inf)
    top = logits.amax(1)
    return top, 1 / (logits - top.unsqueeze(1)).exp().sum(1), (weights * delta.masked_fill(skip, 0.0)).sum(1)


graph_alignment = Op("graph_alignment", graph_alignment_ref)


@graph_alignment.register_fake
def alloc(a, b, scale, floor, diagonal, symmetric, precision, reduction, factor):
    fits = a.dim() == 2 and b.dim() == 2 and a.size(0) == b.size(0)
    check(fits, lambda: f"graph_alignment: expected [N, D] and [N, E], got {list(a.shape)} and {list(b.shape)}")
    acc, n = torch.promote_types(a.dtype, torch.float32), a.size(0)
    few = KEEP_DISTANCES if a.device.type == "cpu" else SMALL
    kept = (n, n) if acc == torch.float32 and n <= few else (0,)
    loss, saved = a.new_empty(reduced_shape(n, reduction), dtype=acc), a.new_empty(SAVED, n, dtype=torch.float64)
    return loss, saved, *(a.new_empty(kept, dtype=acc) for _ in range(2))


@graph_alignment.register_kernel("cpu")
def _cpu(a, b, scale, floor, diagonal, symmetric, precision, reduction, factor):
    _, saved, *kept = alloc(a, b, scale, floor, diagonal, symmetric, precision, reduction, factor)
    rows = torch.empty_like(saved[0], dtype=torch.float32)
    state = kept if kept[0].dim() == 2 else (None, None)
    options = scale is None, 1.0 if scale is None else scale, floor, diagonal, symmetric
    _C.graph_forward(float_rows(a), float_rows(b), *options, rows, saved, *state, torch.get_num_threads())
    return reduced(rows.mul_(factor), reduction), saved, *kept


@graph_alignment.register_kernel("cuda")
def _triton(a, b, scale, floor, diagonal, symmetric, precision, reduction, factor):
    options = scale, floor, diagonal, symmetric, precision
    if len(a) <= 1:
        return graph_alignment_ref(a, b, *options, reduction, factor)
    x, y, out = gpu_rows(a), gpu_rows(b), alloc(a, b, *options, reduction, factor)
    with torch.cuda.device_of(x):
        if len(a) <= SMALL:
            align(x, y, *options, reduction, factor, out)
            return out
        _, saved, *unused = out
        rows = torch.empty_like(saved[0], dtype=torch.float32)
        fold(x, y, *options, rows, saved)
    return reduced(rows.mul_(factor), reduction), saved, *unused


def _backward_ref(
    grad: Tensor,
    saved: Tensor,
    dist_a: Tensor,
    dist_b: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None,
    floor: float,
    diagonal: bool,
    symmetric: bool,
    precision: str,
    reduction: str,
    factor: float,
    want_a: bool,
    want_b: bool,
) -> tuple[Tensor, Tensor]:
    n = len(a)
    if n <= 1:
        return tuple(torch.zeros_like(x) if want else x.new_empty(0) for x, want in ((a, want_a), (b, want_b)))
    x, y = a.to(grad.dtype), b.to(grad.dtype)
    sq_a, sq_b = _sqdist(x), _sqdist(y)
    u, v = _logits(sq_a, scale, floor), _logits(sq_b, scale, floor)
    top_a, inv_a, mean_a, top_b, inv_b, mean_b = (row.unsqueeze(1) for row in saved)
    p, q, delta = (u - top_a).exp() * inv_a, (v - top_b).exp() * inv_b, v - u
    du = p - q - (p * (delta - mean_a) if symmetric else 0.0)
    dv = q * (delta - mean_b) + (q - p if symmetric else 0.0)
    rows = factor * grad_of_rows(grad, n, reduction).unsqueeze(1)
    return (
        _pull(x, rows * du, u, sq_a, scale, floor).to(a.dtype) if want_a else a.new_empty(0),
        _pull(y, rows * dv, v, sq_b, scale, floor).to(b.dtype) if want_b else b.new_empty(0),
    )


def _pull(x, c, dist, sq, scale, floor):
    """Gradient in the rows of x from that in the logits of its graph."""
    slope = (1 / dist).masked_fill(sq <= floor, 0.0) if scale is None else 2 * scale
    s = ((c + c.T) * slope).fill_diagonal_(0.0).to(x.dtype)
    x = x - x.nan_to_num(0.0, 0.0, 0.0).mean(0)
    return torch.addmm(s.sum(1, keepdim=True) * x, s, x, alpha=-1)


graph_alignment_backward = Op("graph_alignment_backward", _backward_ref)


@graph_alignment_backward.register_fake
def _alloc_backward(
    grad, saved, dist_a, dist_b, a, b, scale, floor, diagonal, symmetric, precision, reduction, factor, want_a, want_b
):  # fmt: skip
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if want else x.new_empty(0)
        for x, want in ((a, want_a), (b, want_b))
    )


@graph_alignment_backward.register_kernel("cpu")
def _cpu_backward(
    grad, saved, dist_a, dist_b, a, b, scale, floor, diagonal, symmetric, precision, reduction, factor, want_a, want_b
):  # fmt: skip
    x, y, threads = float_rows(a), float_rows(b), torch.get_num_threads()
    kept = dist_a.dim() == 2
    options = scale is None, 1.0 if scale is None else scale, floor, symmetric
    rows = grad_of_rows(grad, len(x), reduction).mul(factor)
    backward = _C.GraphBackward(x, y, rows, saved, *options, kept, threads)
    sets = [centered(side, threads) if want else None for side, want in ((x, want_a), (y, want_b))]
    if kept:
        weights = dist_a.clone(), dist_b.clone()
        backward.weigh(*weights, 0, 0, threads)
        grads = [
            None if rows is None else product(w, rows.T, torch.empty_like(rows))
            for w, rows in zip(weights, sets, strict=True)
        ]
    else:
        grads = weighted_rows(sets, lambda u, v, i, j: backward.weigh(u, v, i, j, threads), STRIP)
    return tuple(a.new_empty(0) if g is None else g.to(a.dtype) for g in grads)


@graph_alignment_backward.register_kernel("cuda")
def _triton_backward(
    grad, saved, dist_a, dist_b, a, b, scale, floor, diagonal, symmetric, precision, reduction, factor, want_a, want_b
):  # fmt: skip
    n = len(a)
    if n <= 1:
        return tuple(torch.zeros_like(x) if want else x.new_empty(0) for x, want in ((a, want_a), (b, want_b)))
    x, y = gpu_rows(a), gpu_rows(b)
    options = scale, floor, symmetric, precision
    with torch.cuda.device_of(x):
        if n <= SMALL:
            out = [torch.empty_like(rows) if want else None for rows, want in ((x, want_a), (y, want_b))]
            pull_few(grad.contiguous(), saved, dist_a, dist_b, x, y, *options, reduction, factor, out)
        else:
            rows = grad_of_rows(grad, n, reduction).mul(factor)
            out = pull_rows(rows, saved, x, y, *options, want_a, want_b)
    return tuple(a.new_empty(0) if grad is None else grad.to(a.dtype) for grad in out)


def _setup(ctx, inputs, output):
    a, b, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], a, b)


def _backward(ctx, grad, *_):
    wanted = ctx.needs_input_grad[-9], ctx.needs_input_grad[-8]
    if grad is None or not any(wanted):
        return (None,) * 9
    grads = graph_alignment_backward(grad, *ctx.saved_tensors, *ctx.options, *wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), *(None,) * 7


graph_alignment.register_autograd(_backward, _setup)
