r"""graph_alignment: Kullback-Leibler divergence between the rows of two graphs of the same nodes.

    u_ij = d(a_i, a_j), v_ij = d(b_i, b_j)     p_i = softmax_j u_ij, q_i = softmax_j v_ij     delta = v - u
    loss_i = KL(q_i || p_i) = sum_j q_ij delta_ij - (lse v_i - lse u_i);  symmetric adds KL(p_i || q_i)

    scale None   d = sqrt(max(||x - y||^2, floor)), no gradient through a clamped entry;
    otherwise    d = scale * ||x - y||^2. With unit rows and scale -1/(2 t) that is cos / t less a constant of the row,
                 which the softmax does not see, and close rows lose no digits.

Shapes   a [N, D], b [N, E], one dtype and device; diagonal: whether j = i takes part. Out: loss [N], float32 (float64
         for float64); saved [6, N] float64 (largest u, 1 / sum exp(u - largest), sum_j p delta, and the same of v, q),
         and on the CPU up to KEEP_DISTANCES rows both matrices of distances (roots, or squares for a scale).
Defined  a row without columns (N = 1 without diagonal) has loss 0.
Backward du = p - q - [p (delta - <p, delta>)], dv = q (delta - <q, delta>) + [q - p], brackets where symmetric; with
         s_ij = (du_ij + du_ji) * slope_ij, grad_i = a_i sum_j s_ij - sum_j s_ij a_j, and the same for b.
Exact    distances are float32 products of mean-free rows; everything of a row is float64 from there on, because the
         difference of two near graphs is far smaller than its terms.
Memory   mean-free rows of both sets (twice on the CPU: as rows and packed), the gradients, O(N) state, two tiles (CPU)
         or two strips of 512 x N (CUDA): no N x N beyond KEEP_DISTANCES rows.
Launches on a GPU up to SMALL rows two forward, and backward one and one for each gradient, as in weighted_triplet.
Floor    3 products N x N x (D + E); on the CPU 2, where each pair is multiplied once, and 1.5 where distances are kept.
Measured 0.90, 0.78 and 0.40 of the platform's products (60, 120, 2048 rows of 2048, both ways, 2 cores of an AMD EPYC).
Source   specs idkl 5 (graphs), dakd 11 (relations), ckda 5.3 (affinities).
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import centered, float_rows, product, weighted_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels._tile import (
    CLOSE_PAIR,
    gpu_rows,
    input_precision,
    mean_free,
    mean_row,
    pull,
    softmax_update,
    sqdist_tile,
)

SAVED = 6
KEEP_DISTANCES = 256  # rows: at most kSmall of csrc/packed_rows.h
STRIP = 512  # rows of a tile of the backward, as in weighted_triplet


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, _, kept_a, kept_b = (torch.zeros_like(out) for out in alloc(a, b, scale, floor, diagonal, symmetric, precision))
    acc = torch.promote_types(a.dtype, torch.float32)
    x, y = a.to(acc), b.to(acc)
    if len(x) <= (0 if diagonal else 1):
        return x.sum(1) * 0.0, x.new_zeros(SAVED, len(x), dtype=torch.float64), kept_a, kept_b
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
    return loss.to(acc), torch.stack(saved).detach(), kept_a, kept_b


def _row_state(logits, weights, delta, skip):
    logits = logits.masked_fill(skip, -torch.inf)
    top = logits.amax(1)
    return top, 1 / (logits - top.unsqueeze(1)).exp().sum(1), (weights * delta.masked_fill(skip, 0.0)).sum(1)


@triton.jit
def _logits_tile(
    x_ptr, mean_ptr, row, col, n, n_cols, scale, floor,
    ROOT: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Logits of a tile in float64, and the squared distances behind them."""
    sq = sqdist_tile(x_ptr, x_ptr, mean_ptr, row, col, n, n, n_cols, CLOSE, True, PRECISION, BLOCK_K)
    if ROOT:
        return tl.sqrt_rn(tl.where(sq < floor, floor, sq)).to(tl.float64), sq
    return tl.cast(scale, tl.float64) * tl.where(sq < 0.0, 0.0, sq).to(tl.float64), sq


@triton.jit
def _fold_kernel(
    x_ptr, y_ptr, mean_x_ptr, mean_y_ptr, stats_ptr, scale, floor, n, x_cols, y_cols, n_splits,
    ROOT: tl.constexpr, DIAGONAL: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Online softmaxes of BLOCK_M rows over every n_splits-th block of columns; stats is [6, n_splits, n] float64."""
    split = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_u = tl.full((BLOCK_M,), float("-inf"), tl.float64)
    m_v = tl.full((BLOCK_M,), float("-inf"), tl.float64)
    z_u = tl.zeros((BLOCK_M,), tl.float64)
    t_u = tl.zeros((BLOCK_M,), tl.float64)
    z_v = tl.zeros((BLOCK_M,), tl.float64)
    t_v = tl.zeros((BLOCK_M,), tl.float64)
    for start in range(split * BLOCK_N, n, n_splits * BLOCK_N):
        col = tl.cast(start, tl.int64) + tl.arange(0, BLOCK_N)
        u, _ = _logits_tile(x_ptr, mean_x_ptr, row, col, n, x_cols, scale, floor, ROOT, CLOSE, PRECISION, BLOCK_K)
        v, _ = _logits_tile(y_ptr, mean_y_ptr, row, col, n, y_cols, scale, floor, ROOT, CLOSE, PRECISION, BLOCK_K)
        inside = (col[None, :] < n) & (row[:, None] < n)
        if not DIAGONAL:
            inside = inside & (row[:, None] != col[None, :])
        m_u, z_u, t_u = softmax_update(v - u, u, inside, m_u, z_u, t_u, True)
        m_v, z_v, t_v = softmax_update(v - u, v, inside, m_v, z_v, t_v, True)
    out = tl.cast(split, tl.int64) * n + row
    side = tl.cast(n_splits, tl.int64) * n
    tl.store(stats_ptr + out, m_u, mask=row < n)
    tl.store(stats_ptr + side + out, z_u, mask=row < n)
    tl.store(stats_ptr + 2 * side + out, t_u, mask=row < n)
    tl.store(stats_ptr + 3 * side + out, m_v, mask=row < n)
    tl.store(stats_ptr + 4 * side + out, z_v, mask=row < n)
    tl.store(stats_ptr + 5 * side + out, t_v, mask=row < n)


@triton.jit
def _merged(stats_ptr, row, n, n_splits, BLOCK: tl.constexpr):
    """(largest logit, 1 / sum, mean difference) of one softmax over its splits [3, n_splits, n]."""
    side = tl.cast(n_splits, tl.int64) * n
    top = tl.full((BLOCK,), float("-inf"), tl.float64)
    for split in range(n_splits):
        m = tl.load(stats_ptr + tl.cast(split, tl.int64) * n + row, mask=row < n, other=0.0)
        top = tl.where(m > top, m, top)
    z = tl.zeros((BLOCK,), tl.float64)
    t = tl.zeros((BLOCK,), tl.float64)
    for split in range(n_splits):
        at = stats_ptr + tl.cast(split, tl.int64) * n + row
        weight = tl.exp(tl.load(at, mask=row < n, other=0.0) - top)
        z += weight * tl.load(at + side, mask=row < n, other=1.0)
        t += weight * tl.load(at + 2 * side, mask=row < n, other=0.0)
    return top, 1.0 / z, t / z


@triton.jit
def _finish_kernel(stats_ptr, saved_ptr, loss_ptr, n, n_splits, SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    top_a, inv_a, mean_a = _merged(stats_ptr, row, n, n_splits, BLOCK)
    top_b, inv_b, mean_b = _merged(stats_ptr + 3 * tl.cast(n_splits, tl.int64) * n, row, n, n_splits, BLOCK)
    saved = (top_a, inv_a, mean_a, top_b, inv_b, mean_b)
    for k in tl.static_range(6):
        tl.store(saved_ptr + k * tl.cast(n, tl.int64) + row, saved[k], mask=row < n)
    loss = mean_b - mean_a if SYMMETRIC else mean_b - (top_b - top_a + tl.log(inv_a / inv_b))
    tl.store(loss_ptr + row, loss.to(tl.float32), mask=row < n)


graph_alignment = Op("graph_alignment", graph_alignment_ref)


@graph_alignment.register_fake
def alloc(a, b, scale, floor, diagonal, symmetric, precision):
    fits = a.dim() == 2 and b.dim() == 2 and a.size(0) == b.size(0)
    check(fits, lambda: f"graph_alignment: expected [N, D] and [N, E], got {list(a.shape)} and {list(b.shape)}")
    acc, n = torch.promote_types(a.dtype, torch.float32), a.size(0)
    kept = (n, n) if a.device.type == "cpu" and acc == torch.float32 and n <= KEEP_DISTANCES else (0,)
    loss, saved = a.new_empty(n, dtype=acc), a.new_empty(SAVED, n, dtype=torch.float64)
    return loss, saved, *(a.new_empty(kept, dtype=acc) for _ in range(2))


@graph_alignment.register_kernel("cpu")
def _cpu(a, b, scale, floor, diagonal, symmetric, precision):
    loss, saved, *kept = out = alloc(a, b, scale, floor, diagonal, symmetric, precision)
    kept = kept if kept[0].dim() == 2 else (None, None)
    options = scale is None, 1.0 if scale is None else scale, floor, diagonal, symmetric
    _C.graph_forward(float_rows(a), float_rows(b), *options, loss, saved, *kept, torch.get_num_threads())
    return out


@graph_alignment.register_kernel("cuda")
def _triton(a, b, scale, floor, diagonal, symmetric, precision):
    n = len(a)
    if n <= 1:
        return graph_alignment_ref(a, b, scale, floor, diagonal, symmetric, precision)
    x, y = gpu_rows(a), gpu_rows(b)
    rows = triton.cdiv(n, _LAUNCH["BLOCK_M"])
    # About two programs per multiprocessor however few the rows.
    splits = min(triton.cdiv(n, _LAUNCH["BLOCK_N"]), max(1, 256 // rows))
    stats = x.new_empty(6, splits, n, dtype=torch.float64)
    with torch.cuda.device_of(x):
        _fold_kernel[(rows, splits)](
            x, y, mean_row(x, x), mean_row(y, y), stats, 1.0 if scale is None else scale, floor, n, x.size(1),
            y.size(1), splits, ROOT=scale is None, DIAGONAL=diagonal, CLOSE=CLOSE_PAIR,
            PRECISION=input_precision(precision), **_LAUNCH,
        )  # fmt: skip
        loss, saved, *unused = alloc(a, b, scale, floor, diagonal, symmetric, precision)
        _finish_kernel[(triton.cdiv(n, 32),)](stats, saved, loss, n, splits, SYMMETRIC=symmetric, BLOCK=32, num_warps=1)
    return loss, saved, *unused


# 16 rows a warp as in _tile.py; 16 columns, because two tiles of float64 logits spill registers at 32. The limit is all
# that a thread can have: left to itself ptxas stops at 168 registers, for one more block, and spills what is over.
_LAUNCH = {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 2, "num_stages": 2, "maxnreg": 255}


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
    rows = grad.unsqueeze(1)
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
    grad, saved, dist_a, dist_b, a, b, scale, floor, diagonal, symmetric, precision, want_a, want_b
):  # fmt: skip
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if want else x.new_empty(0)
        for x, want in ((a, want_a), (b, want_b))
    )


@graph_alignment_backward.register_kernel("cpu")
def _cpu_backward(
    grad, saved, dist_a, dist_b, a, b, scale, floor, diagonal, symmetric, precision, want_a, want_b
):  # fmt: skip
    x, y, threads = float_rows(a), float_rows(b), torch.get_num_threads()
    kept = dist_a.dim() == 2
    options = scale is None, 1.0 if scale is None else scale, floor, symmetric
    backward = _C.GraphBackward(x, y, grad.contiguous(), saved, *options, kept, threads)
    sets = [centered(rows, threads) if want else None for rows, want in ((x, want_a), (y, want_b))]
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


@triton.jit
def _strip_kernel(
    x_ptr, y_ptr, mean_x_ptr, mean_y_ptr, grad_ptr, saved_ptr, x_strip_ptr, y_strip_ptr, scale, floor, row0, n_rows, n,
    x_cols, y_cols, ROOT: tl.constexpr, SYMMETRIC: tl.constexpr, CLOSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """s_ij of both sets for rows row0 .. row0 + n_rows against all columns; a null strip is not wanted."""
    local = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = row0 + local
    col = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in = (local < n_rows) & (row < n)
    col_in = col < n
    u, sq_u = _logits_tile(x_ptr, mean_x_ptr, row, col, n, x_cols, scale, floor, ROOT, CLOSE, PRECISION, BLOCK_K)
    v, sq_v = _logits_tile(y_ptr, mean_y_ptr, row, col, n, y_cols, scale, floor, ROOT, CLOSE, PRECISION, BLOCK_K)
    valid = row_in[:, None] & col_in[None, :]
    other = row[:, None] != col[None, :]
    at = local[:, None] * tl.cast(n, tl.int64) + col[None, :]
    if x_strip_ptr is not None:
        c = _u_gradient(u, v, grad_ptr, saved_ptr, row, row_in, n, 1, SYMMETRIC)
        c += _u_gradient(u, v, grad_ptr, saved_ptr, col, col_in, n, 0, SYMMETRIC)
        tl.store(x_strip_ptr + at, _weight(c, u, sq_u, other, scale, floor, ROOT), mask=valid)
    if y_strip_ptr is not None:
        c = _v_gradient(u, v, grad_ptr, saved_ptr, row, row_in, n, 1, SYMMETRIC)
        c += _v_gradient(u, v, grad_ptr, saved_ptr, col, col_in, n, 0, SYMMETRIC)
        tl.store(y_strip_ptr + at, _weight(c, v, sq_v, other, scale, floor, ROOT), mask=valid)


@triton.jit
def _weight(c, logit, sq, other, scale, floor, ROOT: tl.constexpr):
    if ROOT:
        return tl.where(other & (sq > floor), c / logit, 0.0).to(tl.float32)
    return tl.where(other, 2.0 * scale * c, 0.0).to(tl.float32)


@triton.jit
def _state(ptr, anchor, inside, AXIS: tl.constexpr):
    return tl.expand_dims(tl.load(ptr + anchor, mask=inside, other=0.0), AXIS).to(tl.float64)


@triton.jit
def _shares(u, v, saved_ptr, anchor, inside, n, AXIS: tl.constexpr):
    """p and q of a tile whose graph rows lie along its rows (AXIS 1) or along its columns (AXIS 0)."""
    p = tl.exp(u - _state(saved_ptr, anchor, inside, AXIS)) * _state(saved_ptr + n, anchor, inside, AXIS)
    q = tl.exp(v - _state(saved_ptr + 3 * n, anchor, inside, AXIS)) * _state(saved_ptr + 4 * n, anchor, inside, AXIS)
    return p, q


@triton.jit
def _u_gradient(u, v, grad_ptr, saved_ptr, anchor, inside, n, AXIS: tl.constexpr, SYMMETRIC: tl.constexpr):
    p, q = _shares(u, v, saved_ptr, anchor, inside, n, AXIS)
    c = p - q
    if SYMMETRIC:
        c -= p * (v - u - _state(saved_ptr + 2 * n, anchor, inside, AXIS))
    return c * _state(grad_ptr, anchor, inside, AXIS)


@triton.jit
def _v_gradient(u, v, grad_ptr, saved_ptr, anchor, inside, n, AXIS: tl.constexpr, SYMMETRIC: tl.constexpr):
    p, q = _shares(u, v, saved_ptr, anchor, inside, n, AXIS)
    c = q * (v - u - _state(saved_ptr + 5 * n, anchor, inside, AXIS))
    if SYMMETRIC:
        c += q - p
    return c * _state(grad_ptr, anchor, inside, AXIS)


@graph_alignment_backward.register_kernel("cuda")
def _triton_backward(
    grad, saved, dist_a, dist_b, a, b, scale, floor, diagonal, symmetric, precision, want_a, want_b
):  # fmt: skip
    n = len(a)
    if n <= 1:
        return tuple(torch.zeros_like(x) if want else x.new_empty(0) for x, want in ((a, want_a), (b, want_b)))
    x, y, grad = gpu_rows(a), gpu_rows(b), grad.contiguous()
    with torch.cuda.device_of(x):
        sides = []  # rows, their mean, mean-free rows, gradient, strip of weights
        for rows, want in ((x, want_a), (y, want_b)):
            mean = mean_row(rows, rows)
            x_c = mean_free(rows, mean) if want else None
            out = torch.empty_like(rows if x_c is None else x_c) if want else None
            sides.append((rows, mean, x_c, out, x.new_empty(min(STRIP, n), n, dtype=torch.float32) if want else None))
        for start in range(0, n, STRIP):
            rows = min(STRIP, n - start)
            grid = (triton.cdiv(rows, _LAUNCH["BLOCK_M"]), triton.cdiv(n, _LAUNCH["BLOCK_N"]))
            _strip_kernel[grid](
                x, y, sides[0][1], sides[1][1], grad, saved, sides[0][-1], sides[1][-1],
                1.0 if scale is None else scale, floor, start, rows, n, x.size(1), y.size(1), ROOT=scale is None,
                SYMMETRIC=symmetric, CLOSE=CLOSE_PAIR, PRECISION=input_precision(precision), **_LAUNCH,
            )  # fmt: skip
            for *side, out, strip in sides:
                if out is not None:
                    pull(strip[:rows], start, *side, out)
    return tuple(a.new_empty(0) if out is None else out.to(a.dtype) for *_, out, _ in sides)


def _setup(ctx, inputs, output):
    a, b, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], a, b)


def _backward(ctx, grad, *_):
    wanted = ctx.needs_input_grad[-7], ctx.needs_input_grad[-6]
    if grad is None or not any(wanted):
        return (None,) * 7
    grads = graph_alignment_backward(grad, *ctx.saved_tensors, *ctx.options, *wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), *(None,) * 5


graph_alignment.register_autograd(_backward, _setup)
