from torch import Tensor

from vifast import _checks
from vifast.kernels._reduction import reduced
from vifast.kernels.symmetric_kl import symmetric_kl as _symmetric_kl


def symmetric_kl(a: Tensor, b: Tensor, *, block: int | None = None) -> Tensor:
    r"""KL divergence of matching rows of logits in both directions, mean over rows: KL(p || q) + KL(q || p).

    p and q are softmaxes of a row of ``a`` and of ``b``, without temperature; both sides get gradient. With ``block=k``
    consecutive blocks of k rows are first laid side by side, so that one softmax runs over the logits of all blocks:
    row r of the k x (N C / k) matrix is the rows r, r + k, r + 2k, ..., and the divisor is k.

    Args:
        a: [N, C] logits.
        b: [N, C], same dtype and device.
        block: rows of a block, a divisor of N.

    Returns:
        A scalar. No rows: 0.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: four numbers a row, and the gradients; no softmax is stored. Source: spec idkl 5.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> round(symmetric_kl(a, b).item(), 4)
        0.3808
    """
    _checks.rows("a", a)
    _checks.rows("b", b)
    _checks.same_shape("b", b, "a", a)
    if block is not None:
        _checks.block("block", block, a)
    return reduced(_symmetric_kl(a, b, a.size(0) if block is None else block)[0], "mean")
