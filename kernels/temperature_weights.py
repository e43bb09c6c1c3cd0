r"""temperature_weights: factors of every row and temperature of a distillation over two modalities, from one mask.

A row i of modality m, of n_m rows, gets (fixed[m][T] + masked[m][T] k_i) / n_m for temperature T. k_i is the row's mask
(``rowwise``) or the kept share of its modality, which is all that is left of a mask that multiplies a mean. ``by_kept``
divides the masked part by the number of kept rows instead. Weighted sums of rows are then means of modalities, added.

Shapes    mask [N]: ``first`` rows of the first modality, then those of the second; fixed, masked: 2*T numbers, those
          of the first modality first. weights [N, T]; kept []: kept share of the rows of those modalities that are
          masked at all, 1 where none is.
Edges     a modality without rows adds nothing. No gradient.
Source    spec dakd 5.4, 5.5.
"""

import torch
from torch import Tensor

from vifast.kernels._registry import Op, check


def temperature_weights_ref(
    mask: Tensor, first: int, fixed: list[float], masked: list[float], rowwise: bool, by_kept: bool
) -> tuple[Tensor, Tensor]:
    n_t, weights, kept = len(fixed) // 2, [], []
    for m, own in enumerate((mask[:first], mask[first:])):
        n, count = max(own.size(0), 1), own.sum()
        keep = own if rowwise else (count / n).expand(own.size(0))
        keep = keep / (count.clamp(min=1) if by_kept else n)
        columns = zip(fixed[m * n_t :][:n_t], masked[m * n_t :][:n_t], strict=True)
        weights.append(torch.stack([f / n + k * keep for f, k in columns], 1))
        if any(masked[m * n_t :][:n_t]):
            kept.append(own)
    weights, share = torch.cat(weights), torch.cat(kept).mean() if sum(map(len, kept)) else mask.new_ones(())
    return weights, share


temperature_weights = Op("temperature_weights", temperature_weights_ref)


@temperature_weights.register_fake
def _alloc(mask, first, fixed, masked, rowwise, by_kept):
    fits = mask.dim() == 1 and len(fixed) == len(masked) and len(fixed) % 2 == 0
    check(
        fits,
        lambda: (
            f"temperature_weights: expected mask [N], two tables of one even length, "
            f"got {list(mask.shape)}, {len(fixed)} and {len(masked)} numbers"
        ),
    )
    return mask.new_empty(mask.size(0), len(fixed) // 2), mask.new_empty(())
