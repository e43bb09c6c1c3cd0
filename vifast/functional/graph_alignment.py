from torch import Tensor

from vifast import _checks
from vifast.functional._common import PRECISIONS, REDUCTIONS
from vifast.kernels.graph_alignment import graph_alignment as _graph_alignment


def graph_alignment(
    a: Tensor,
    b: Tensor,
    *,
    symmetric: bool = True,
    floor: float = 1e-6,
    reduction: str = "mean",
    precision: str = "exact",
) -> Tensor:
    r"""Divergence between the distance graphs of two feature sets of the same N samples.

    A graph is the matrix sqrt(max(||f_i - f_j||^2, floor)) without its diagonal; each row goes through a softmax of
    **+distance**, p_i for ``a`` and q_i for ``b``. The loss is the mean over rows of KL(q_i || p_i) + KL(p_i || q_i),
    or of KL(q_i || p_i) alone for ``symmetric=False``, where ``b`` is the target. Both sides receive the gradient
    of the formula; pass ``b.detach()`` for a fixed target. No gradient flows through a clamped distance.

    Args:
        a: [N, D].
        b: [N, E], same dtype and device.
        symmetric: see above.
        floor: least squared distance under the root, at least 0.
        reduction: ``"mean"`` over the N rows, ``"sum"`` or ``"none"``. No rows, or a single one: 0.
        precision: see :func:`pairwise_distance`.

    Returns:
        A scalar, or [N] for ``reduction="none"``.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: copies of the inputs and the gradients; two N x N matrices up to 256 rows, none beyond.
    Source: spec idkl 5 (Gamma and S); Ren and Zhang 2024 (IDKL).

    Example:
        >>> import torch
        >>> a = torch.tensor([[0.0], [1.0], [3.0]])
        >>> round(graph_alignment(a, 2 * a).item(), 4), round(graph_alignment(a, a + 5).item(), 4)
        (0.1673, 0.0)
    """
    _checks.rows("a", a)
    _checks.rows("b", b)
    _checks.same_rows("b", b, "a", a)
    _checks.same_kind("b", b, "a", a)
    _checks.non_negative("floor", floor)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    _checks.one_of("precision", precision, PRECISIONS)
    return _graph_alignment(a, b, None, float(floor), False, bool(symmetric), precision, reduction, 1.0)[0]
