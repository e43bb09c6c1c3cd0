from collections.abc import Sequence

import torch
from torch import Tensor

from vifast import _checks
from vifast.functional._common import REDUCTIONS
from vifast.kernels._reduction import reduced
from vifast.kernels.standardized_kl import standardized_kl as _standardized_kl

STANDARDIZE = ("zscore", "none")


def standardized_kl(
    student: Tensor,
    teacher: Tensor,
    temperatures: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    keep: Tensor | None = None,
    reduction: str = "mean",
    standardize: str = "zscore",
    ddof: int = 1,
    eps: float = 1e-7,
) -> Tensor:
    r"""Divergence of standardised, tempered rows: keep_i sum_T w_T T^2 KL(softmax(z(t_i) / T) || softmax(z(s_i) / T)).

    z(a) = (a - mean a) / (std a + eps), so scale and offset of a row do not matter. The teacher gets no gradient.

    Args:
        student: [N, D] rows of logits, or features read as such.
        teacher: [N, D], same dtype and device.
        temperatures: numbers above 0.
        weights: one number at least 0 per temperature; default 1 each.
        keep: [N] factors of the rows. The mean still divides by N.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. The mean of no rows is 0.
        standardize: ``"zscore"``, or ``"none"`` for rows as they are.
        ddof: 0 or 1, taken from D in the deviation.
        eps: at least 0, added to the deviation.

    Returns:
        A scalar, or [N] for ``reduction="none"``. A constant row counts as all zeros.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: the student's gradient, where it is wanted. Source: spec dakd 5.1; Sun et al. 2024 (logit standardisation).

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[0.0, 4.0, 5.0]])
        >>> round(standardized_kl(student, teacher, (2, 4)).item(), 4)
        0.2855
        >>> standardized_kl(3 * teacher + 1, teacher, (2, 4)).item() < 1e-12
        True
    """
    _checks.rows("student", student)
    _checks.rows("teacher", teacher)
    _checks.same_shape("teacher", teacher, "student", student)
    temperatures = _checks.number_list("temperatures", temperatures, _checks.positive)
    if weights is None:
        weights = [1.0] * len(temperatures)
    weights = _checks.number_list("weights", weights, _checks.non_negative, len(temperatures))
    if keep is not None:
        _checks.row_values("keep", keep, "student", student)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    _checks.one_of("standardize", standardize, STANDARDIZE)
    _checks.one_of("ddof", ddof, (0, 1))
    _checks.non_negative("eps", eps)
    scale = None if keep is None else keep.to(torch.promote_types(student.dtype, torch.float32)).unsqueeze(1)
    rows = scaled_standardized_kl(student, teacher, scale, temperatures, weights, standardize, ddof, eps)
    return reduced(rows, reduction)


def scaled_standardized_kl(student, teacher, scale, temperatures, weights, standardize, ddof, eps) -> Tensor:
    """Rows [N] of checked arguments; scale [N, 1] or [N, T]."""
    with_slope = student.requires_grad and torch.is_grad_enabled()
    options = (temperatures, weights, standardize == "zscore", int(ddof), float(eps))
    return _standardized_kl(student, teacher, scale, *options, with_slope)[0]
