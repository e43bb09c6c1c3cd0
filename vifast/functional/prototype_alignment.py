import torch
from torch import Tensor

from vifast import _checks
from vifast.kernels.prototype_alignment import prototype_alignment as _prototype_alignment


def prototype_alignment(
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    *,
    tau: float = 0.1,
    kappa: float = 10.0,
) -> Tensor:
    r"""Cross-modal knowledge alignment of one set of samples with one set of prototypes, l(m, m') of CKDA.

    R(F) = softmax over prototypes of cos(f_i, p_k) / tau; A(F) = softmax over samples of kappa cos(R_i, R_j), i = j
    included; the loss is the mean over rows of KL(A(teacher)_i || A(student)_i).

    Args:
        student: [N, D].
        teacher: [N, D], same dtype and device; no gradient flows into it.
        prototypes: [K, D], same dtype and device; constant as well.
        tau: above 0.
        kappa: at least 0; 0.1 is the published value, with which the loss is at most 0.005.

    Returns:
        A scalar; no rows or no prototypes: 0.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: two N x K arrays, copies of the inputs and the gradient; two N x N matrices up to 256 rows, none beyond.
    Source: spec ckda 5.

    Example:
        >>> import torch
        >>> student, teacher = torch.eye(3), torch.eye(3)[[0, 0, 2]]
        >>> round(prototype_alignment(student, teacher, torch.eye(3), kappa=1.0).item(), 4)
        0.0745
    """
    _checks.rows("student", student)
    _checks.rows("teacher", teacher)
    _checks.same_rows("teacher", teacher, "student", student)
    _checks.same_columns("teacher", teacher, "student", student)
    _checks.rows("prototypes", prototypes)
    _checks.same_columns("prototypes", prototypes, "student", student)
    _checks.positive("tau", tau)
    _checks.non_negative("kappa", kappa)
    with_slope = student.requires_grad and torch.is_grad_enabled()
    return _prototype_alignment(student, teacher, prototypes, float(tau), float(kappa), with_slope)[0]
