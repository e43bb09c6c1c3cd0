r"""prompt_statistics: what the hidden planes of prompts are normalised by, [B, R]; running statistics move on the way.

Shapes   hidden [B, R, G], modality [B] int64; running mean and variance of the specific columns of visible (v) and of
         infrared (i) [S] with their counters [] int64, and of the common columns (c) [S'], any of them None with the
         columns; mean, rstd [B, R] float32 (float64 for float64). Columns as in kernels/_prompts.py.
Norms    `batch`: a specific column has the statistics of all samples of its modality, otherwise the running ones;
         `instance`: a common column has those of its own plane, otherwise the running ones. With `batch` the running
         statistics move by `momentum` as torch.nn's do (variances unbiased); those of an absent modality stay.
Exact    a batch's variance comes of its samples' variances and means, not of squares: nothing cancels.
Backward none: prompt_mixture knows what they are of.
Defined  a NaN stays in its sample, but for its modality's batch statistics, and the running ones.
Memory   the results, and a variance for each sample and column.
Floor    one read of hidden.
Measured within ModalityPrompts, 4.7 of the bytes of the images, 64 x 3 x 256 x 128, on two cores of an AMD EPYC,
         forward; the planes are a thirty-second of them.
Source   spec ckda 3.2, 3.3.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._prompts import tile
from vifast.kernels._registry import Op, check
from vifast.kernels._small import counters, last_program
from vifast.kernels.purifier import instance_stats_ref


def _batch_moments(
    mean: Tensor, var: Tensor, modality: Tensor, cells: int, specific: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Values of either modality [2, 1], their mean and biased variance [2, S], from those of all planes."""
    own = torch.stack((modality == 0, modality != 0))[..., None]  # [2, B, 1]
    count = own.sum(1)
    size = count.clamp(min=1)
    # The other modality's samples must not reach the statistics even where they are NaN: selected, not multiplied.
    center = torch.where(own, mean[:, :specific], 0.0).sum(1) / size
    spread = var[:, :specific] + (mean[:, :specific] - center[:, None]).square()
    return count * cells, center, torch.where(own, spread, 0.0).sum(1) / size


def moments(hidden: Tensor, modality: Tensor, specific: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [B, R] of the batch for specific columns, of its own plane for common ones."""
    mean, var = instance_stats_ref(hidden[..., None])
    _, *batch = _batch_moments(mean, var, modality, hidden.size(2), specific)
    other = (modality != 0).long()
    return tuple(torch.cat((b[other], own[:, specific:]), 1) for b, own in zip(batch, (mean, var), strict=True))


def _lerp(running: Tensor, value: Tensor, share: Tensor | float) -> None:
    running.copy_(running.to(value.dtype).lerp(value, torch.as_tensor(share, dtype=value.dtype, device=value.device)))


def prompt_statistics_ref(
    hidden: Tensor,
    modality: Tensor,
    mean_v: Tensor | None,
    var_v: Tensor | None,
    tracked_v: Tensor | None,
    mean_i: Tensor | None,
    var_i: Tensor | None,
    tracked_i: Tensor | None,
    mean_c: Tensor | None,
    var_c: Tensor | None,
    batch: bool,
    instance: bool,
    eps: float,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    specific = 0 if mean_v is None else len(mean_v)
    cells, infrared = hidden.size(2), (modality != 0)[:, None]
    own_mean, own_var = instance_stats_ref(hidden[..., None])
    mean, var = own_mean[:, specific:], own_var[:, specific:]
    if mean_c is not None and batch:
        _lerp(mean_c, mean.mean(0), momentum)
        _lerp(var_c, var.mean(0) * (cells / (cells - 1)), momentum)
    if not instance and mean_c is not None:
        mean, var = (x.to(hidden.dtype).expand_as(mean) for x in (mean_c, var_c))
    if specific:
        centers, variances = ((mean_v, mean_i), (var_v, var_i))
        if batch:
            counts, centers, variances = _batch_moments(own_mean, own_var, modality, cells, specific)
            unbiased = variances * (counts / (counts - 1).clamp(min=1))
            for m, (running_mean, running_var) in enumerate(((mean_v, var_v), (mean_i, var_i))):
                share = momentum * (counts[m] > 0)
                _lerp(running_mean, centers[m], share)
                _lerp(running_var, unbiased[m], share)
            tracked_v += counts[0, 0] > 0
            tracked_i += counts[1, 0] > 0
        center, variance = (torch.where(infrared, i, v).to(hidden.dtype) for v, i in (centers, variances))
        mean, var = torch.cat((center, mean), 1), torch.cat((variance, var), 1)
    return mean.contiguous(), (var + eps).rsqrt()


_BUFFERS = "mean_v", "var_v", "tracked_v", "mean_i", "var_i", "tracked_i", "mean_c", "var_c"
prompt_statistics = Op("prompt_statistics", prompt_statistics_ref, mutates=_BUFFERS)


@prompt_statistics.register_fake
def _alloc_statistics(
    hidden, modality, mean_v, var_v, tracked_v, mean_i, var_i, tracked_i, mean_c, var_c, batch, instance, eps, momentum
):
    columns = sum(len(x) for x in (mean_v, mean_c) if x is not None)
    fits = hidden.dim() == 3 and modality.shape == hidden.shape[:1] and hidden.size(1) == columns
    got = f"{list(hidden.shape)} and {list(modality.shape)}"
    check(fits, lambda: f"prompt_statistics: expected [B, {columns}, G] and [B], got {got}")
    return hidden.new_empty(hidden.shape[:2]), hidden.new_empty(hidden.shape[:2])


@prompt_statistics.register_kernel("cpu")
def _cpu_statistics(hidden, modality, *buffers_and_options):
    buffers, options = buffers_and_options[:8], buffers_and_options[8:]
    out = _alloc_statistics(hidden, modality, *buffers, *options)
    wide = [x if x is None or x.dtype == torch.int64 else float_rows(x) for x in buffers]
    _C.prompt_statistics(hidden.contiguous(), modality.contiguous(), *wide, *options, *out, torch.get_num_threads())
    for buffer, moved in zip(buffers, wide, strict=True):
        if buffer is not moved:
            buffer.copy_(moved)
    return out


@triton.jit
def _move(running_ptr, k, value, there, momentum):
    old = tl.load(running_ptr + k, mask=there, other=0.0).to(tl.float32)
    tl.store(running_ptr + k, old + momentum * (value - old), mask=there)


@triton.jit
def _own_rows(mean_ptr, var_ptr, modality_ptr, start, n, columns, r, BLOCK_B: tl.constexpr):
    """Mean and variance of the planes of BLOCK_B samples [B, R], where they lie, and which of the samples are visible
    and infrared."""
    b = start + tl.arange(0, BLOCK_B)
    at, mask = b[:, None] * columns + r[None, :], (b[:, None] < n) & (r[None, :] < columns)
    infrared = tl.load(modality_ptr + b, mask=b < n, other=0) != 0
    mean = tl.load(mean_ptr + at, mask=mask, other=0.0)
    return mean, tl.load(var_ptr + at, mask=mask, other=0.0), at, mask, (b < n) & (infrared == 0), (b < n) & infrared


@triton.jit
def _statistics_kernel(
    hidden_ptr, modality_ptr, mean_v_ptr, var_v_ptr, tracked_v_ptr, mean_i_ptr, var_i_ptr, tracked_i_ptr,
    mean_c_ptr, var_c_ptr, own_ptr, mean_ptr, rstd_ptr, counter_ptr, n, columns, cells, specific, eps, momentum,
    BATCH: tl.constexpr, INSTANCE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """A program for each sample's planes, whose moments go to own [2, B, R]; the last one goes through all of them."""
    sample, r = tl.program_id(0), tl.arange(0, BLOCK_R)
    row = (sample.to(tl.int64) * columns + r)[:, None] * cells
    total = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, cells, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)[None, :]
        total += tl.sum(tl.load(hidden_ptr + row + g, mask=(r[:, None] < columns) & (g < cells), other=0.0), 1)
    mean = total / cells
    square = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, cells, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)[None, :]
        mask = (r[:, None] < columns) & (g < cells)
        off = tl.load(hidden_ptr + row + g, mask=mask, other=0.0) - mean[:, None]
        square += tl.sum(tl.where(mask, off * off, 0.0), 1)
    own_var_ptr = own_ptr + n * columns
    tl.store(own_ptr + sample * columns + r, mean, mask=r < columns)
    tl.store(own_var_ptr + sample * columns + r, square / cells, mask=r < columns)
    if last_program(counter_ptr, n):
        of = (own_ptr, own_var_ptr, modality_ptr)
        center_v = tl.zeros((BLOCK_R,), tl.float32)
        center_i = tl.zeros((BLOCK_R,), tl.float32)
        spread = tl.zeros((BLOCK_R,), tl.float32)
        n_v = 0
        n_i = 0
        for start in range(0, n, BLOCK_B):
            m, v, at, mask, visible, infrared = _own_rows(of[0], of[1], of[2], start, n, columns, r, BLOCK_B)
            center_v += tl.sum(tl.where(visible[:, None], m, 0.0), 0)
            center_i += tl.sum(tl.where(infrared[:, None], m, 0.0), 0)
            spread += tl.sum(v, 0)
            n_v += tl.sum(visible.to(tl.int32))
            n_i += tl.sum(infrared.to(tl.int32))
        if mean_c_ptr is not None:
            common, there = r - specific, (r >= specific) & (r < columns)
            if BATCH:
                _move(mean_c_ptr, common, (center_v + center_i) / n, there, momentum)
                _move(var_c_ptr, common, spread / n * (cells / tl.maximum(cells - 1, 1)), there, momentum)
        center_v /= tl.maximum(n_v, 1)
        center_i /= tl.maximum(n_i, 1)
        spread_v = tl.zeros((BLOCK_R,), tl.float32)
        spread_i = tl.zeros((BLOCK_R,), tl.float32)
        if mean_v_ptr is not None:
            if BATCH:
                for start in range(0, n, BLOCK_B):
                    m, v, at, mask, visible, infrared = _own_rows(of[0], of[1], of[2], start, n, columns, r, BLOCK_B)
                    off_v, off_i = m - center_v[None, :], m - center_i[None, :]
                    spread_v += tl.sum(tl.where(visible[:, None], v + off_v * off_v, 0.0), 0)
                    spread_i += tl.sum(tl.where(infrared[:, None], v + off_i * off_i, 0.0), 0)
                spread_v /= tl.maximum(n_v, 1)
                spread_i /= tl.maximum(n_i, 1)
                own_v, own_i = r < tl.where(n_v > 0, specific, 0), r < tl.where(n_i > 0, specific, 0)
                _move(mean_v_ptr, r, center_v, own_v, momentum)
                _move(mean_i_ptr, r, center_i, own_i, momentum)
                cells_v, cells_i = (n_v * cells).to(tl.float32), (n_i * cells).to(tl.float32)
                _move(var_v_ptr, r, spread_v * (cells_v / tl.maximum(cells_v - 1.0, 1.0)), own_v, momentum)
                _move(var_i_ptr, r, spread_i * (cells_i / tl.maximum(cells_i - 1.0, 1.0)), own_i, momentum)
                tl.store(tracked_v_ptr, tl.load(tracked_v_ptr) + (n_v > 0).to(tl.int64))
                tl.store(tracked_i_ptr, tl.load(tracked_i_ptr) + (n_i > 0).to(tl.int64))
            else:
                center_v = tl.load(mean_v_ptr + r, mask=r < specific, other=0.0).to(tl.float32)
                center_i = tl.load(mean_i_ptr + r, mask=r < specific, other=0.0).to(tl.float32)
                spread_v = tl.load(var_v_ptr + r, mask=r < specific, other=0.0).to(tl.float32)
                spread_i = tl.load(var_i_ptr + r, mask=r < specific, other=0.0).to(tl.float32)
        for start in range(0, n, BLOCK_B):
            m, v, at, mask, visible, infrared = _own_rows(of[0], of[1], of[2], start, n, columns, r, BLOCK_B)
            if mean_c_ptr is not None:  # noqa: SIM102 - known when the kernel is compiled, one after the other
                if not INSTANCE:
                    m = tl.zeros_like(m) + tl.load(mean_c_ptr + common, mask=there, other=0.0).to(tl.float32)[None, :]
                    v = tl.zeros_like(v) + tl.load(var_c_ptr + common, mask=there, other=0.0).to(tl.float32)[None, :]
            first = r[None, :] < specific
            m = tl.where(first, tl.where(visible[:, None], center_v[None, :], center_i[None, :]), m)
            v = tl.where(first, tl.where(visible[:, None], spread_v[None, :], spread_i[None, :]), v)
            tl.store(mean_ptr + at, m, mask=mask)
            tl.store(rstd_ptr + at, 1.0 / tl.sqrt_rn(v + eps), mask=mask)


@prompt_statistics.register_kernel("cuda")
def _triton_statistics(hidden, modality, *buffers_and_options):
    buffers, (batch, instance, eps, momentum) = buffers_and_options[:8], buffers_and_options[8:]
    mean, rstd = _alloc_statistics(hidden, modality, *buffers_and_options)
    n, columns, cells = hidden.shape
    if n == 0:
        return mean, rstd
    specific = 0 if buffers[0] is None else len(buffers[0])
    own = hidden.new_empty(2, n, columns)
    with torch.cuda.device_of(hidden):
        _statistics_kernel[(n,)](
            hidden.contiguous(), modality.contiguous(), *buffers, own, mean, rstd, counters(hidden),
            n, columns, cells, specific, eps, momentum,
            BATCH=batch, INSTANCE=instance, BLOCK_R=tile(columns), BLOCK_G=64, BLOCK_B=16, maxnreg=64,
        )  # fmt: skip
    return mean, rstd
