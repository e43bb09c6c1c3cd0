r"""center_loss: squared distance of every row to the center of its class, sum_i ||f_i - c_{y_i}||^2 / (N K).

Shapes   feat [N, D], centers [K, D], one dtype, labels [N] int64; out: a scalar, float32 (float64 for float64).
Defined  a label outside 0 .. K - 1 belongs to no class: its row adds nothing and gets no gradient. No rows or no
         classes: 0. A non-finite row spoils the loss, and gradients of its own row and class alone.
Exact    differences are formed before they are squared; the gradient of a center is summed over its rows in rising
         order, in float64 on the CPU, whatever the threads.
Backward 2 (f_i - c_{y_i}) / (N K), and minus its sum over the rows of a class, of the inputs that need it. Nothing is
         saved but the inputs. On a GPU the program of a class finds its rows by comparing labels; together they read
         2 K / D times the bytes of the rows for it, from cache.
Memory   the gradients, and N numbers.
Launches on a GPU up to SMALL rows one forward, and always one backward.
Floor    (N + P)*D*4 bytes read, P the classes with rows; backward the same again, and (N + K)*D*4 written.
Measured 5.2 and 7.5 of a pass over the bytes for 32 and 120 rows of 2048, 395 classes, on two cores of an AMD EPYC,
         forward and backward: gradients go to new memory, the pass does not.
Source   spec idkl 4; Wen et al. 2016.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels._small import SMALL, counters, load_row, next_row, reduce_rows


def center_loss_ref(feat: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    acc = torch.promote_types(feat.dtype, torch.float32)
    if feat.size(0) * centers.size(0) == 0:
        return 0.0 * (feat.to(acc).sum() + centers.to(acc).sum())
    inside = (labels >= 0) & (labels < len(centers))
    own = embedding(torch.where(inside, labels, 0), centers.to(acc))  # its gradient is summed in a fixed order
    square = (feat.to(acc) - own).square().sum(1)
    return torch.where(inside, square, 0.0).sum() / (len(feat) * len(centers))


@triton.jit
def _forward_kernel(
    x_ptr, labels_ptr, centers_ptr, rows_ptr, loss_ptr, counter_ptr, share, n, k, n_cols,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program; loss_ptr None: their sum is not formed here."""
    i = tl.program_id(0)
    label = tl.load(labels_ptr + i)
    square = tl.zeros((BLOCK,), tl.float32)
    if (label >= 0) & (label < k):
        for start in range(0, n_cols, BLOCK):
            col = start + tl.arange(0, BLOCK)
            step = load_row(x_ptr, i, col, n_cols) - load_row(centers_ptr, label, col, n_cols)
            square += step * step
    tl.store(rows_ptr + i, tl.sum(square))
    if loss_ptr is not None:
        reduce_rows(rows_ptr, loss_ptr, counter_ptr, share, n, n, ROWS)


@triton.jit
def _backward_kernel(
    grad_ptr, x_ptr, labels_ptr, centers_ptr, to_x_ptr, to_centers_ptr, share, n, k, n_cols,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One class a program and block of columns, and one more for the rows of none. A gradient may be None."""
    c = tl.program_id(0)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(grad_ptr) * tl.cast(2.0 * share, tl.float32)
    center = load_row(centers_ptr, tl.where(c < k, c, 0), col, n_cols)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        label = tl.load(labels_ptr + j, mask=j < n, other=-1)
        own = (j < n) & (tl.where((label >= 0) & (label < k), label, k) == c)
        row = next_row(own, j, -1, n)
        while row < n:
            step = tl.where(c < k, weight * (load_row(x_ptr, row, col, n_cols) - center), 0.0)
            if to_x_ptr is not None:
                tl.store(to_x_ptr + tl.cast(row, tl.int64) * n_cols + col, step, mask=col < n_cols)
            total -= step
            row = next_row(own, j, row, n)
    if to_centers_ptr is not None:
        columns = tl.where(c < k, n_cols, 0)
        tl.store(to_centers_ptr + tl.cast(c, tl.int64) * n_cols + col, total, mask=col < columns)


center_loss = Op("center_loss", center_loss_ref)


@center_loss.register_fake
def _alloc(feat, labels, centers):
    fits = feat.dim() == centers.dim() == 2 and feat.size(1) == centers.size(1) and labels.shape == feat.shape[:1]
    check(fits, lambda: f"center_loss: expected [N, D], [N] and [K, D], got {list(feat.shape)}, {list(labels.shape)} "
                        f"and {list(centers.shape)}")  # fmt: skip
    return feat.new_empty((), dtype=torch.promote_types(feat.dtype, torch.float32))


def _share(feat, centers):
    """What one squared distance counts for."""
    return 1 / max(feat.size(0) * centers.size(0), 1)


@center_loss.register_kernel("cpu")
def _cpu(feat, labels, centers):
    loss = _alloc(feat, labels, centers)
    args = float_rows(feat), labels.contiguous(), float_rows(centers), _share(feat, centers)
    _C.center_loss(*args, loss, torch.get_num_threads())
    return loss


@center_loss.register_kernel("cuda")
def _triton(feat, labels, centers):
    n, k = len(feat), len(centers)
    if feat.numel() * k == 0:
        return center_loss_ref(feat, labels, centers)
    loss, rows = _alloc(feat, labels, centers), feat.new_empty(n, dtype=torch.float32)
    total = (loss, counters(feat)) if n <= SMALL else (None, None)
    args, launch = _launch(feat, labels, centers)
    with torch.cuda.device_of(feat):
        _forward_kernel[(n,)](*args, rows, *total, _share(feat, centers), n, k, feat.size(1), ROWS=SMALL, **launch)
    return loss if n <= SMALL else rows.sum() * _share(feat, centers)


def _launch(feat, labels, centers):
    """Inputs as the kernels read them, and the block of columns of a program."""
    block = min(1024, max(128, triton.next_power_of_2(feat.size(1))))
    return tuple(x.detach().contiguous() for x in (feat, labels, centers)), {"BLOCK": block, "num_warps": block // 128}


def _backward_ref(
    grad: Tensor, feat: Tensor, labels: Tensor, centers: Tensor, want_feat: bool, want_centers: bool
) -> tuple[Tensor, Tensor]:
    to_feat, to_centers = _alloc_backward(grad, feat, labels, centers, want_feat, want_centers)
    if feat.size(0) * centers.size(0) == 0:
        return to_feat.zero_(), to_centers.zero_()
    acc = torch.promote_types(feat.dtype, torch.float32)
    inside = ((labels >= 0) & (labels < len(centers))).unsqueeze(1)
    own = torch.where(inside.squeeze(1), labels, 0)
    step = torch.where(inside, 2 * grad * _share(feat, centers) * (feat.to(acc) - centers.to(acc)[own]), 0.0)
    if want_feat:
        to_feat = step.to(feat.dtype)
    if want_centers:
        to_centers = torch.ops.aten.embedding_dense_backward(-step, own, len(centers), -1, False).to(centers.dtype)
    return to_feat, to_centers


center_loss_backward = Op("center_loss_backward", _backward_ref)


@center_loss_backward.register_fake
def _alloc_backward(grad, feat, labels, centers, want_feat, want_centers):
    wanted = ((feat, want_feat), (centers, want_centers))
    return tuple(x.new_empty(x.shape if want else (0, 0)) for x, want in wanted)


@center_loss_backward.register_kernel("cpu")
def _cpu_backward(grad, feat, labels, centers, want_feat, want_centers):
    x, c = float_rows(feat), float_rows(centers)
    grads = _alloc_backward(grad, x, labels, c, want_feat, want_centers)
    outs = (out if want else None for out, want in zip(grads, (want_feat, want_centers), strict=True))
    _C.center_loss_backward(grad, x, labels.contiguous(), c, _share(feat, centers), *outs, torch.get_num_threads())
    return tuple(g.to(feat.dtype) for g in grads)


@center_loss_backward.register_kernel("cuda")
def _triton_backward(grad, feat, labels, centers, want_feat, want_centers):
    n, k = len(feat), len(centers)
    if feat.numel() * k == 0:
        return _backward_ref(grad, feat, labels, centers, want_feat, want_centers)
    grads = _alloc_backward(grad, feat, labels, centers, want_feat, want_centers)
    outs = (out if want else None for out, want in zip(grads, (want_feat, want_centers), strict=True))
    args, launch = _launch(feat, labels, centers)
    rows = min(128, max(16, triton.next_power_of_2(n)))
    with torch.cuda.device_of(feat):
        grid = (k + 1, triton.cdiv(feat.size(1), launch["BLOCK"]))
        how = _share(feat, centers), n, k, feat.size(1)
        _backward_kernel[grid](grad, *args, *outs, *how, BLOCK_N=rows, **launch)
    return grads


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    if grad is None:
        return None, None, None
    wanted = ctx.needs_input_grad[-3], ctx.needs_input_grad[-1]
    to_feat, to_centers = center_loss_backward(grad, *ctx.saved_tensors, *wanted)
    return to_feat if wanted[0] else None, None, to_centers if wanted[1] else None


center_loss.register_autograd(_backward, _setup)
