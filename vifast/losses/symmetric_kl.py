from torch import Tensor, nn

from vifast import _checks, functional


class SymmetricKLLoss(nn.Module):
    """KL divergence of matching rows of logits in both directions, see :func:`vifast.functional.symmetric_kl`.

    Args:
        block: rows of the blocks that are laid side by side first, or ``None``.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> round(SymmetricKLLoss(block=1)(torch.eye(2), torch.zeros(2, 2)).item(), 4)
        0.2311
    """

    def __init__(self, *, block: int | None = None):
        super().__init__()
        if block is not None:
            _checks.block("block", block)
        self.block = block

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return functional.symmetric_kl(a, b, block=self.block)

    def extra_repr(self) -> str:
        return f"block={self.block}"
