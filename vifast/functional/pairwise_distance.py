from torch import Tensor

from vifast import _checks
from vifast.functional._common import METRICS, PRECISIONS, unit
from vifast.kernels.pairwise_distance import pairwise_distance as _pairwise_distance


def pairwise_distance(
    feat: Tensor,
    other: Tensor | None = None,
    *,
    metric: str = "euclidean",
    floor: float = 1e-12,
    precision: str = "exact",
) -> Tensor:
    r"""Distances of every row of ``feat`` to every row of ``other`` (default: ``feat``).

    ``euclidean``: sqrt(max(||a - b||^2, floor)); ``sqeuclidean``: ||a - b||^2; ``cosine``: 1 - cos(a, b), zero rows
    have cos 0.

    Close pairs do not lose digits: rows are moved to their common mean, and a pair whose squared distance is below
    1/64 of its squared norms is computed by direct difference. No gradient flows through an entry clamped at ``floor``.

    Args:
        feat: [N, D].
        other: [M, D], same dtype and device.
        metric: one of the three above.
        floor: least squared distance under the root, at least 0.
        precision: on a GPU, ``"exact"`` products carry float32 accuracy, ``"fast"`` are tf32. The CPU is always exact.

    Returns:
        [N, M]. This is the one loss-side function that stores N x M; the losses below do not.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: the result and one copy of the inputs. Source: spec idkl 4.

    Example:
        >>> import torch
        >>> pairwise_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]])).tolist()
        [[9.999999974752427e-07], [5.0]]
    """
    _checks.rows("feat", feat)
    if other is not None:
        _checks.rows("other", other)
        _checks.same_columns("other", other, "feat", feat)
    _checks.one_of("metric", metric, METRICS)
    _checks.one_of("precision", precision, PRECISIONS)
    _checks.non_negative("floor", floor)
    if metric == "cosine":
        return 0.5 * _pairwise_distance(*unit(feat, other), 0.0, False, precision)
    if metric == "sqeuclidean":
        return _pairwise_distance(feat, other, 0.0, False, precision)
    return _pairwise_distance(feat, other, float(floor), True, precision)
