"""Arguments of the retrieval calls: arrays become tensors, and each error names what was expected and what came."""

import operator
import warnings

import numpy as np
import torch
from torch import Tensor

from vifast import _checks

METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")
CHECKED_ROWS = 4096


def as_tensor(name: str, value) -> Tensor:
    """A tensor as it is (detached), a NumPy array as a tensor over the same memory."""
    if isinstance(value, Tensor):
        return value.detach()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a tensor or an array, got {type(value).__name__}")
    if any(stride < 0 for stride in value.strides):
        value = np.ascontiguousarray(value)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to it
        try:
            return torch.from_numpy(value)
        except TypeError as error:
            raise TypeError(f"{name}: expected a numeric array, got dtype {value.dtype}") from error


def features(query, gallery, names: tuple[str, str] = ("query", "gallery")) -> tuple[Tensor, Tensor]:
    """Both feature sets: floating-point [Q, D] and [G, D] of one dtype and device, none empty."""
    query, gallery = as_tensor(names[0], query), as_tensor(names[1], gallery)
    _checks.rows(names[0], query)
    _checks.rows(names[1], gallery)
    _checks.same_columns(names[1], gallery, names[0], query)
    for name, value in zip(names, (query, gallery), strict=True):
        if value.numel() == 0:
            raise ValueError(f"{name}: expected at least one row and one column, got {list(value.shape)}")
    return query, gallery


def check_finite(name: str, value: Tensor, first: int = 0) -> None:
    """ValueError naming the first row with a NaN, an infinity, or a number whose square float64 cannot sum.

    Rows are counted from ``first`` and looked at a few at a time: they may lie in a file that is larger than memory.
    """
    for start in range(0, len(value), CHECKED_ROWS):
        bad = ~(value[start : start + CHECKED_ROWS].abs().amax(1).double() <= 1e150)
        if bool(bad.any()):
            raise ValueError(f"{name}: row {first + start + int(bad.nonzero()[0])} is not finite")


def codes_of(name: str, value, like_name: str, count: int) -> Tensor:
    """Identities or cameras: one integer per row of ``like_name``, as int64 on the CPU (wherever they came from)."""
    value = as_tensor(name, value).cpu()
    return _checks.labels(name, value, like_name, torch.empty(count, 0))


def encoded(values: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """int64 values as int32 codes from 0, equal within and across both where the values are."""
    codes = torch.unique(torch.cat([values, other]), return_inverse=True)[1].to(torch.int32)
    return codes[: len(values)], codes[len(values) :]


def positive(name: str, value) -> int:
    """A whole number of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}") from None
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number
