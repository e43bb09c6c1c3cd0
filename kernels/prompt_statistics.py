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
Source   spec ckda 3.2, 3.3.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._registry import Op, check
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


def _move(running: Tensor, value: Tensor, share: Tensor | float) -> None:
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
        _move(mean_c, mean.mean(0), momentum)
        _move(var_c, var.mean(0) * (cells / (cells - 1)), momentum)
    if not instance and mean_c is not None:
        mean, var = (x.to(hidden.dtype).expand_as(mean) for x in (mean_c, var_c))
    if specific:
        centers, variances = ((mean_v, mean_i), (var_v, var_i))
        if batch:
            counts, centers, variances = _batch_moments(own_mean, own_var, modality, cells, specific)
            unbiased = variances * (counts / (counts - 1).clamp(min=1))
            for m, (running_mean, running_var) in enumerate(((mean_v, var_v), (mean_i, var_i))):
                share = momentum * (counts[m] > 0)
                _move(running_mean, centers[m], share)
                _move(running_var, unbiased[m], share)
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
