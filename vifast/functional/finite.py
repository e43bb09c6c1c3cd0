import torch
from torch import Tensor


def check_finite(**tensors: Tensor) -> None:
    """Raises ``ValueError`` naming the first tensor with a NaN or an infinity, and its first bad row.

    The losses never synchronise with the host, so they turn bad features into a non-finite loss; this says where it
    came from. It reads a flag back from the device.

    Example:
        >>> import torch
        >>> check_finite(feat=torch.tensor([[0.0], [float("nan")]]))
        Traceback (most recent call last):
        ValueError: feat: row 1 is not finite
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        finite = torch.isfinite(value)
        if not bool(finite.all()):
            row = int((~finite).reshape(len(value), -1).any(1).nonzero()[0]) if value.dim() else 0
            raise ValueError(f"{name}: row {row} is not finite")
