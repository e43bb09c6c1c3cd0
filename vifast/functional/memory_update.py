import torch
from torch import Tensor

from vifast import _checks
from vifast.kernels.memory_update import memory_update


def memory_update_(
    memory: Tensor, feat: Tensor, labels: Tensor, *, keep: float = 0.25, keep_global: float = 0.1
) -> Tensor:
    r"""Moves the rows of the batch's classes in memories of class features, in place; the others stay as they are.

    .. math::

        m_{sk} \leftarrow \mathrm{unit}\big(\kappa\, m_{sk} + (1 - \kappa)\, \mathrm{mean}_{l_i = k}\, x_{si}\big),
        \qquad m_{gk} \leftarrow \mathrm{unit}\big(\kappa_g m_{gk} + (1 - \kappa_g)\, x_h\big)

    for every stream s, and for the global memory with h the row of class k, of all streams, that is least similar to
    it: the one of smallest product, ties to the lower stream, then row.

    Args:
        memory: [S + 1, K, D] float32 or float64, contiguous; the last is the global one.
        feat: [S, N, D], usually of unit rows: row i of every stream has label i.
        labels: [N] integers. Rows whose label is not in 0 .. K - 1 are ignored.
        keep, keep_global: shares of the old row, 0 to 1.

    Returns:
        ``memory``. It takes no part in differentiation.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: a row a thread. Source: spec dakd 3.

    Example:
        >>> import torch
        >>> memory = torch.zeros(2, 2, 2)
        >>> feat = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> memory_update_(memory, feat, torch.tensor([1, 1])).tolist()[1]
        [[0.0, 0.0], [1.0, 0.0]]
    """
    for name, value, shape in (("memory", memory, "[S + 1, K, D]"), ("feat", feat, "[S, N, D]")):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor {shape}, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
        if value.dim() != 3:
            raise ValueError(f"{name}: expected shape {shape}, got {list(value.shape)}")
    if memory.dtype not in (torch.float32, torch.float64) or not memory.is_contiguous():
        how = "contiguous" if memory.is_contiguous() else "strided"
        raise ValueError(f"memory: expected a contiguous float32 or float64 tensor, got {how} {memory.dtype}")
    wanted = [memory.size(0) - 1, feat.size(1), memory.size(2)]
    if list(feat.shape) != wanted or wanted[0] < 1:
        raise ValueError(f"feat: expected shape [S, N, D] of memory {list(memory.shape)}, got {list(feat.shape)}")
    _checks.same_device("feat", feat, "memory", memory)
    labels = _checks.labels("labels", labels, "feat[0]", feat[0])
    for name, value in (("keep", keep), ("keep_global", keep_global)):
        _checks.within(name, value, 0, 1)
    memory_update(memory, feat.detach(), labels, float(keep), float(keep_global))
    return memory
