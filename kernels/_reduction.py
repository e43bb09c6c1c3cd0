"""From a loss of every row to what the caller asked for, "mean", "sum" or "none", and back."""

from torch import Tensor


def reduced(rows: Tensor, reduction: str) -> Tensor:
    """Losses [N], or their mean or sum []; the mean of none is 0."""
    if reduction == "none":
        return rows
    return rows.mean() if reduction == "mean" and rows.size(0) > 0 else rows.sum()


def reduced_shape(n: int, reduction: str) -> tuple[int, ...]:
    return (n,) if reduction == "none" else ()


def share_of_row(n: int, reduction: str) -> float:
    """What one of n rows counts for."""
    return 1 / n if reduction == "mean" and n > 0 else 1.0


def grad_of_rows(grad: Tensor, n: int, reduction: str) -> Tensor:
    """Gradient of every row's loss [N] from the gradient of what ``reduced`` returned."""
    return (grad * share_of_row(n, reduction)).expand(n).contiguous()
