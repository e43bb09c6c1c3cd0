import torch
from torch import Tensor

from vifast import _checks
from vifast.functional._common import REDUCTIONS
from vifast.kernels.decoupled_kl import decoupled_kl as _decoupled_kl


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Decoupled distillation: temperature^2 (alpha KL(b_t || b_s) + beta KL(r_t || r_s)), teacher t to student s.

    b is the pair (probability of the row's own class, of all others together), r the softmax over the others alone,
    both of logits / temperature. The teacher gets no gradient.

    Args:
        student, teacher: [N, K] logits, one dtype and device.
        labels: [N] integers. A row whose label is not in 0 .. K - 1 counts as 0.
        alpha, beta: at least 0.
        temperature: above 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. The mean of no rows is 0.

    Returns:
        A scalar, or [N] for ``reduction="none"``.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: one [N, K] in float32, the gradient to come. Agreeing rows keep their digits. Source: spec dakd 11; Zhao et
    al. 2022.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[4.0, 0.0, 0.0]])
        >>> round(decoupled_kl(student, teacher, torch.tensor([0])).item(), 4)
        1.9726
    """
    _checks.rows("student", student)
    _checks.rows("teacher", teacher)
    _checks.same_shape("teacher", teacher, "student", student)
    labels = _checks.labels("labels", labels, "student", student)
    for name, value in (("alpha", alpha), ("beta", beta)):
        _checks.non_negative(name, value)
    _checks.positive("temperature", temperature)
    _checks.one_of("reduction", reduction, REDUCTIONS)
    with_slope = student.requires_grad and torch.is_grad_enabled()
    options = float(alpha), float(beta), float(temperature), reduction, with_slope
    return _decoupled_kl(student, teacher.detach(), labels, *options)[0]
