r"""confidence_weights: factors of every row and temperature of a distillation over two modalities, from the teacher's
logits alone: confidence, mask and weights in one op.

Row i of modality m, of n_m rows, gets (fixed[m][T] + masked[m][T] k_i) / n_m for temperature T. k_i is 1 where the
teacher is sure of the row (``high``: c_i >= theta, otherwise c_i <= theta, c_i = max_j softmax(logits_i)_j), times
``allowed_i``; or, unless ``rowwise``, the mean of that over the modality, which is all that is left of a mask that
multiplies a mean. ``by_kept`` divides the masked part by the number of kept rows instead. Weighted sums of rows are
then means of modalities, added. A modality is masked where any of its ``masked`` is not 0. theta, by ``rule``:

    percentile   the ``level``-th of each masked modality     fixed   ``level`` itself
    ema          level * before + (1 - level) * mean of c over the masked rows, from that mean where ``before`` is NaN,
                 and ``before`` where that mean is not finite: it would never recover
    none         every row is sure; the logits are not read

Shapes    logits [N, C]: ``first`` rows of the first modality, then those of the second; allowed [N] or None; before
          [] float32, only of ema; fixed, masked: 2*T numbers, those of the first modality first. weights [N, T]; kept
          []: mean of k over the masked rows, 1 where there is none; theta [] float32: the new average, 0 but for ema.
Edges     a NaN confidence is not counted in a percentile and never sure; a modality without rows adds nothing.
Memory    results and [N] confidences. No value goes to the host. No gradient.
Floor     one read of the logits.
Measured  within DAKDLoss, whose whole is 1.3 of its products for 32 + 32 rows, 395 classes, on two cores of an AMD
          EPYC, forward and backward.
Source    spec dakd 5.4, 5.5, H3.
"""

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import float_rows
from vifast.kernels._lang import tl, triton
from vifast.kernels._registry import Op, check
from vifast.kernels.percentile_mask import (
    MOST,
    no_gradient,
    percentile_mask_ref,
    percentile_of,
    setup,
    softmax_confidence,
    softmax_confidence_ref,
)

RULES = ("percentile", "fixed", "ema", "none")


def confidence_weights_ref(
    logits: Tensor,
    allowed: Tensor | None,
    before: Tensor | None,
    first: int,
    rule: str,
    level: float,
    high: bool,
    fixed: list[float],
    masked: list[float],
    rowwise: bool,
    by_kept: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    confidence = softmax_confidence_ref(logits)
    return _weights_of(confidence, allowed, before, first, rule, level, high, fixed, masked, rowwise, by_kept)


def _weights_of(confidence, allowed, before, first, rule, level, high, fixed, masked, rowwise, by_kept):
    n_t, sides = len(fixed) // 2, (slice(first), slice(first, None))
    on = [any(masked[:n_t]), any(masked[n_t:])]
    theta = confidence.new_zeros((), dtype=torch.float32)
    if rule == "ema":
        counted = [confidence[side] for side, is_on in zip(sides, on, strict=True) if is_on]
        mean = torch.cat(counted or [confidence[:0]]).mean()
        after = torch.where(before.isnan(), mean, torch.lerp(mean, before.to(mean), level)).to(torch.float32)
        theta = torch.where(mean.isfinite(), after, before)
    weights, kept = [], []
    for m, side in enumerate(sides):
        own = confidence[side]
        keep = torch.ones_like(own)
        if on[m] and rule == "percentile":
            keep = percentile_mask_ref(own, level, high)
        elif on[m] and rule != "none":
            bar = theta if rule == "ema" else level
            keep = (own >= bar if high else own <= bar).to(own.dtype)
        if on[m]:
            keep = keep if allowed is None else keep * allowed[side].to(keep.dtype)
            kept.append(keep)
        n, count = max(own.size(0), 1), keep.sum()
        share = keep if rowwise else (count / n).expand(own.size(0))
        share = share / (count.clamp(min=1) if by_kept else n)
        columns = zip(fixed[m * n_t :][:n_t], masked[m * n_t :][:n_t], strict=True)
        weights.append(torch.stack([f / n + k * share for f, k in columns], 1))
    share = torch.cat(kept).mean() if sum(map(len, kept)) else confidence.new_ones(())
    return torch.cat(weights), share, theta


@triton.jit
def _weights_kernel(
    confidence_ptr, allowed_ptr, before_ptr, weights_ptr, kept_ptr, theta_ptr, n, first, level,
    FIXED: tl.constexpr, MASKED: tl.constexpr, ON_FIRST: tl.constexpr, ON_SECOND: tl.constexpr, RULE: tl.constexpr,
    HIGH: tl.constexpr, ROWWISE: tl.constexpr, BY_KEPT: tl.constexpr, ALLOWED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: thresholds, masks, and the factors of all rows."""
    i = tl.arange(0, BLOCK)
    n_t: tl.constexpr = len(FIXED) // 2
    masked = ((i < first) & ON_FIRST) | ((i >= first) & (i < n) & ON_SECOND)
    rows = tl.sum(masked.to(tl.float32))
    keep = tl.where(i < n, 1.0, 0.0)
    after = 0.0
    if RULE != "none":
        c = tl.load(confidence_ptr + i, mask=i < n, other=0.0)
        bar = c.to(tl.float64) * 0.0 + level
        if RULE == "percentile":
            theta_first = percentile_of(confidence_ptr, c, i, 0, first, level)
            theta_second = percentile_of(confidence_ptr, c, i, first, n, level)
            bar = tl.where(i < first, theta_first, theta_second)
        if RULE == "fixed":
            bar = bar.to(tl.float32).to(tl.float64)
        if RULE == "ema":
            mean = tl.sum(tl.where(masked, c, 0.0)) / rows
            before = tl.load(before_ptr)
            after = tl.where(before == before, mean + level * (before - mean), mean)  # noqa: PLR0124 - NaN
            after = tl.where(tl.abs(mean) < float("inf"), after.to(tl.float32), before)
            bar = c.to(tl.float64) * 0.0 + after
        sure = c.to(tl.float64) >= bar if HIGH else c.to(tl.float64) <= bar
        keep = tl.where(masked & ~sure, 0.0, keep)
    if ALLOWED:
        keep = tl.where(masked, keep * tl.load(allowed_ptr + i, mask=i < n, other=0.0), keep)
    tl.store(theta_ptr, after)
    tl.store(kept_ptr, tl.where(rows > 0, tl.sum(tl.where(masked, keep, 0.0)) / tl.maximum(rows, 1.0), 1.0))
    for side in tl.static_range(2):
        own = (i < first) if side == 0 else ((i >= first) & (i < n))
        size = tl.maximum((first if side == 0 else n - first).to(tl.float32), 1.0)
        count = tl.sum(tl.where(own, keep, 0.0))
        share = keep if ROWWISE else tl.zeros((BLOCK,), tl.float32) + count / size
        share = share / (tl.maximum(count, 1.0) if BY_KEPT else size)
        for t in tl.static_range(n_t):
            weight = FIXED[side * n_t + t] / size + MASKED[side * n_t + t] * share
            tl.store(weights_ptr + i * n_t + t, weight, mask=own)


confidence_weights = Op("confidence_weights", confidence_weights_ref)


@confidence_weights.register_fake
def _alloc(logits, allowed, before, first, rule, level, high, fixed, masked, rowwise, by_kept):
    check(logits.dim() == 2, lambda: f"confidence_weights: expected logits [N, C], got {list(logits.shape)}")
    fits = len(fixed) == len(masked) and len(fixed) % 2 == 0
    tables = f"{len(fixed)} and {len(masked)}"
    check(fits, lambda: f"confidence_weights: expected two tables of one even length, got {tables} numbers")
    fits = rule in RULES and (rule == "ema") == (before is not None)
    check(fits, lambda: f"confidence_weights: expected one of {RULES} and before exactly with ema, got {rule!r}")
    acc = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.new_empty(logits.size(0), len(fixed) // 2, dtype=acc)
    return weights, weights.new_empty(()), weights.new_empty((), dtype=torch.float32)


@confidence_weights.register_kernel("cpu")
def _cpu(logits, allowed, before, first, rule, level, high, *tables):
    out = _alloc(logits, allowed, before, first, rule, level, high, *tables)
    confidence = out[0].new_zeros(logits.size(0)) if rule == "none" else softmax_confidence.run(logits)
    allowed = None if allowed is None else float_rows(allowed)
    _C.confidence_weights(confidence, allowed, before, first, RULES.index(rule), level, high, *tables, *out)
    return out


@confidence_weights.register_kernel("cuda")
def _triton(logits, allowed, before, first, rule, level, high, fixed, masked, rowwise, by_kept):
    weights, kept, theta = _alloc(logits, allowed, before, first, rule, level, high, fixed, masked, rowwise, by_kept)
    n, n_t = weights.shape
    confidence = weights if rule == "none" else softmax_confidence.run(logits)
    if not 0 < n <= MOST:
        confidence = weights.new_zeros(n) if rule == "none" else confidence
        return _weights_of(confidence, allowed, before, first, rule, level, high, fixed, masked, rowwise, by_kept)
    allowed = None if allowed is None else allowed.to(torch.float32).contiguous()
    block = max(32, triton.next_power_of_2(n))
    with torch.cuda.device_of(logits):
        _weights_kernel[(1,)](
            confidence, allowed, before, weights, kept, theta, n, first, level,
            FIXED=tuple(fixed), MASKED=tuple(masked), ON_FIRST=any(masked[:n_t]), ON_SECOND=any(masked[n_t:]),
            RULE=rule, HIGH=high, ROWWISE=rowwise, BY_KEPT=by_kept, ALLOWED=allowed is not None, BLOCK=block,
            num_warps=max(1, block // 64),
        )  # fmt: skip
    return weights, kept, theta


confidence_weights.register_autograd(no_gradient, setup)
