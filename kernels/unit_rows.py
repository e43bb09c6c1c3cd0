r"""unit_rows: rows divided by their norm, u_i = x_i / max(|x_i|, 1e-12).

Shapes   feat [N, D]; out [N, D] float32 (float64 for float64).
Defined  a zero row stays zero; a non-finite row is NaN, alone.
Backward (g - <g, u> u) / max(|x|, 1e-12), from the rows themselves.
Memory   the result; the gradient.
Floor    4*N*D bytes read and written, backward 8 and 4.
Measured within relation_alignment, 0.81 of its products for 120 rows of 2048 on two cores of an AMD EPYC, forward and
         backward.
Source   spec dakd 1 (f-hat), 11.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels._softmax import row_launch

LEAST_NORM = 1e-12


def unit_rows_ref(feat: Tensor) -> Tensor:
    return normalize(feat.to(torch.promote_types(feat.dtype, torch.float32)), eps=LEAST_NORM)


@triton.jit
def row_norm(x_ptr, row, n_cols, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * n_cols + j, mask=j < n_cols, other=0.0).to(tl.float32)
        square += x * x
    norm = tl.sqrt(tl.sum(square))
    return tl.where(norm < LEAST, LEAST, norm)


@triton.jit
def _unit_kernel(x_ptr, out_ptr, n_cols, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    inverse = 1.0 / row_norm(x_ptr, row, n_cols, LEAST, BLOCK)
    for start in range(0, n_cols, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * n_cols + j, mask=j < n_cols, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * n_cols + j, x * inverse, mask=j < n_cols)


@triton.jit
def _backward_kernel(grad_ptr, x_ptr, out_ptr, n_cols, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    inverse = 1.0 / row_norm(x_ptr, row, n_cols, LEAST, BLOCK)
    along = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_cols, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * n_cols + j, mask=j < n_cols, other=0.0).to(tl.float32)
        along += x * inverse * tl.load(grad_ptr + row * n_cols + j, mask=j < n_cols, other=0.0)
    share = tl.sum(along) * inverse
    for start in range(0, n_cols, BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * n_cols + j, mask=j < n_cols, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * n_cols + j, mask=j < n_cols, other=0.0)
        tl.store(out_ptr + row * n_cols + j, (grad - share * x) * inverse, mask=j < n_cols)


unit_rows = Op("unit_rows", unit_rows_ref)


@unit_rows.register_fake
def _alloc(feat):
    check(feat.dim() == 2, lambda: f"unit_rows: expected rows [N, D], got {list(feat.shape)}")
    return feat.new_empty(feat.shape, dtype=torch.promote_types(feat.dtype, torch.float32))


@unit_rows.register_kernel("cpu")
def _cpu(feat):
    out = _alloc(feat)
    _C.unit_rows(float_rows(feat), out, torch.get_num_threads())
    return out


@unit_rows.register_kernel("cuda")
def _triton(feat):
    x, out = feat.detach().contiguous(), _alloc(feat)
    if out.numel() > 0:
        with torch.cuda.device_of(x):
            _unit_kernel[(x.size(0),)](x, out, x.size(1), LEAST=LEAST_NORM, **row_launch(x.size(1)))
    return out


def _backward_ref(grad: Tensor, feat: Tensor) -> Tensor:
    inverse = 1 / feat.to(grad.dtype).norm(dim=1, keepdim=True).clamp(min=LEAST_NORM)
    unit = feat.to(grad.dtype) * inverse
    return ((grad - (grad * unit).sum(1, keepdim=True) * unit) * inverse).to(feat.dtype)


unit_rows_backward = Op("unit_rows_backward", _backward_ref)


@unit_rows_backward.register_fake
def _alloc_backward(grad, feat):
    return torch.empty_like(feat, memory_format=torch.contiguous_format)


@unit_rows_backward.register_kernel("cpu")
def _cpu_backward(grad, feat):
    x = float_rows(feat)
    out = torch.empty_like(x)
    _C.unit_backward(grad.contiguous(), x, out, torch.get_num_threads())
    return out.to(feat.dtype)


@unit_rows_backward.register_kernel("cuda")
def _triton_backward(grad, feat):
    x, grad, out = feat.detach().contiguous(), grad.contiguous(), _alloc_backward(grad, feat)
    if out.numel() > 0:
        with torch.cuda.device_of(x):
            _backward_kernel[(x.size(0),)](grad, x, out, x.size(1), LEAST=LEAST_NORM, **row_launch(x.size(1)))
    return out


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return (None if grad is None else unit_rows_backward(grad, *ctx.saved_tensors),)


unit_rows.register_autograd(_backward, _setup)
