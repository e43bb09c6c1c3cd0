import torch
from torch import Tensor

from vifast import _checks
from vifast.functional._common import REDUCTIONS
from vifast.kernels._reduction import reduced


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

    Memory: some [N, K] in float64, in which agreeing rows keep their digits. Source: spec dakd 11; Zhao et al. 2022.

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
    own = labels.unsqueeze(1) == torch.arange(student.size(1), device=labels.device)
    (pair_t, rest_t), (pair_s, rest_s) = (_split(x.double() / temperature, own) for x in (teacher.detach(), student))
    binary = (pair_t.exp() * (pair_t - pair_s)).sum(1)
    others = (rest_t.exp() * (rest_t - rest_s)).masked_fill(own, 0.0).sum(1)
    rows = torch.where(own.any(1), temperature**2 * (alpha * binary + beta * others), 0.0)
    return reduced(rows.to(torch.promote_types(student.dtype, torch.float32)), reduction)


def _split(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of (own class, all others) [N, 2], and of the softmax over the others [N, K]."""
    # The lowest number and not -inf: of a single class there are no others.
    rest = logits.masked_fill(own, torch.finfo(logits.dtype).min)
    sides = torch.stack((torch.where(own, logits, 0.0).sum(1), rest.logsumexp(1)), 1)
    return sides.log_softmax(1), rest.log_softmax(1)
