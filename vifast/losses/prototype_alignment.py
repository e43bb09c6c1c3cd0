from torch import Tensor, nn

from vifast import _checks, functional


class PrototypeAlignmentLoss(nn.Module):
    """Alignment of sample relations seen through prototypes, see :func:`vifast.functional.prototype_alignment`.

    Args:
        tau: temperature of the relation to the prototypes, above 0.
        kappa: factor of the relation among samples, at least 0.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> PrototypeAlignmentLoss()(torch.eye(3), torch.eye(3), torch.eye(3)).item()
        0.0
    """

    def __init__(self, *, tau: float = 0.1, kappa: float = 10.0):
        super().__init__()
        _checks.positive("tau", tau)
        _checks.non_negative("kappa", kappa)
        self.tau, self.kappa = tau, kappa

    def forward(self, student: Tensor, teacher: Tensor, prototypes: Tensor) -> Tensor:
        return functional.prototype_alignment(student, teacher, prototypes, tau=self.tau, kappa=self.kappa)

    def extra_repr(self) -> str:
        return f"tau={self.tau}, kappa={self.kappa}"
