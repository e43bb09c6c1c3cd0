from torch import Tensor

from vifast import _checks
from vifast.functional._common import PRECISIONS
from vifast.kernels.relation_alignment import relation_alignment as _relation_alignment


def relation_alignment(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.1,
    keep: Tensor | None = None,
    precision: str = "exact",
) -> Tensor:
    r"""Relation distillation: temperature^2 / N * sum_i keep_i KL(teacher_i || student_i).

    The relation of a sample is the softmax over all others of cos(f_i, f_j) / temperature. The teacher is constant.

    Args:
        student: [N, D].
        teacher: [N, E], same dtype and device; no gradient flows into it.
        temperature: above 0.
        keep: [N] weights (bool or numbers) that multiply the rows; the mean still divides by N. Constant. Default: all
            1.
        precision: see :func:`pairwise_distance`.

    Returns:
        A scalar. No rows, or a single one: 0.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: copies of the inputs and the gradient; two N x N matrices up to 256 rows, none beyond.
    Source: spec dakd 11 (relation KL), H8.

    Example:
        >>> import torch
        >>> student, teacher = torch.eye(3), torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]])
        >>> round(relation_alignment(student, teacher, temperature=1.0).item(), 4)
        0.0392
    """
    _checks.rows("student", student)
    _checks.rows("teacher", teacher)
    _checks.same_rows("teacher", teacher, "student", student)
    _checks.same_kind("teacher", teacher, "student", student)
    _checks.positive("temperature", temperature)
    _checks.one_of("precision", precision, PRECISIONS)
    if keep is not None:
        _checks.weights("keep", keep, "student", student)
    return _relation_alignment(student, teacher.detach(), keep, float(temperature), precision)[0]
