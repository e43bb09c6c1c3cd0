from torch import Tensor

from vifast import _checks
from vifast.kernels._reduction import reduced
from vifast.kernels.entropy_hinge import entropy_hinge as _entropy_hinge


def entropy_hinge(raw: Tensor, purified: Tensor, *, margin: float = 0.0) -> Tensor:
    r"""Penalty on a purified row that is less certain than the raw one: mean of exp(max(0, H(q) - H(p) + margin)) - 1.

    H is the entropy of the softmax p of a row of ``raw``, q of ``purified``. Both get gradient where the hinge is open.

    Args:
        raw: [N, C] logits.
        purified: [N, C], same dtype and device.
        margin: at least 0, in nats.

    Returns:
        A scalar. No rows: 0.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: five numbers a row, and the gradients; no softmax is stored. Source: spec idkl 3, L_F.

    Example:
        >>> import torch
        >>> round(entropy_hinge(torch.tensor([[4.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item(), 4)
        0.6358
    """
    _checks.rows("raw", raw)
    _checks.rows("purified", purified)
    _checks.same_shape("purified", purified, "raw", raw)
    _checks.non_negative("margin", margin)
    return reduced(_entropy_hinge(raw, purified, float(margin))[0], "mean")
