from torch import Tensor

from vifast import _checks
from vifast.kernels.unit_rows import unit_pair, unit_rows

METRICS = ("euclidean", "sqeuclidean", "cosine")
REDUCTIONS = ("mean", "sum", "none")
PRECISIONS = ("exact", "fast")


def reference_of(feat: Tensor, reference: Tensor | None, reference_labels: Tensor | None) -> Tensor | None:
    """Checks a set to compare ``feat`` with, and its labels, which are returned as int64."""
    if (reference is None) != (reference_labels is None):
        missing = "reference" if reference is None else "reference_labels"
        raise ValueError(f"{missing}: expected reference and reference_labels together, got None")
    if reference is None:
        return None
    _checks.rows("reference", reference)
    _checks.same_columns("reference", reference, "feat", feat)
    return _checks.labels("reference_labels", reference_labels, "reference", reference)


def unit(feat: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rows of unit length of both sets, in one launch on a GPU."""
    return (unit_rows(feat), None) if other is None else unit_pair(feat, other)
