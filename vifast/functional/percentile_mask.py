from torch import Tensor

from vifast import _checks
from vifast.kernels.percentile_mask import percentile_mask as _percentile_mask
from vifast.kernels.percentile_mask import softmax_confidence as _softmax_confidence


def softmax_confidence(logits: Tensor) -> Tensor:
    r"""Largest probability of each row, max_j softmax(logits_i)_j. No gradient.

    Args:
        logits: [N, C].

    Returns:
        [N] in 0..1. No columns: 0.

    Raises:
        TypeError, ValueError: ``logits`` is not as described.

    Memory: the result. Source: spec dakd 5.4.

    Example:
        >>> import torch
        >>> softmax_confidence(torch.tensor([[0.0, 0.0], [50.0, 0.0]])).tolist()
        [0.5, 1.0]
    """
    _checks.rows("logits", logits)
    return _softmax_confidence(logits)


def percentile_mask(confidence: Tensor, q: float = 50.0, *, keep: str = "high") -> Tensor:
    r"""1 for rows whose confidence is at least (``keep="low"``: at most) the q-th percentile of all, 0 for the others.

    The percentile interpolates linearly between the sorted values; rows tied with it are kept. It is found on the
    device: nothing goes to the host. No gradient.

    Args:
        confidence: [N].
        q: 0..100.
        keep: ``"high"`` or ``"low"``.

    Returns:
        [N], of the dtype of ``confidence``. A NaN is left out of the percentile and never kept.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: the result and a sorted copy. Source: spec dakd 5.4.

    Example:
        >>> import torch
        >>> percentile_mask(torch.tensor([0.9, 0.1, 0.5, 0.7])).tolist()
        [1.0, 0.0, 0.0, 1.0]
    """
    _checks.vector("confidence", confidence)
    _checks.within("q", q, 0, 100)
    _checks.one_of("keep", keep, ("high", "low"))
    return _percentile_mask(confidence, float(q), keep == "high")
