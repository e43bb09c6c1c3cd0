from torch import Tensor

from vifast import _checks
from vifast.functional._common import PRECISIONS
from vifast.kernels.graph_alignment import graph_alignment
from vifast.kernels.unit_rows import unit_rows


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
        keep: [N] weights (bool or numbers) that multiply the rows; the mean still divides by N. Default: all 1.
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
    # cos = 1 - ||u - v||^2 / 2 between unit rows, and a softmax does not see the 1.
    scale = -0.5 / temperature
    rows, options = (unit_rows(student), unit_rows(teacher.detach())), (scale, 0.0, False, False, precision)
    if keep is None:
        return graph_alignment(*rows, *options, "mean", temperature**2)[0]
    loss, *_ = graph_alignment(*rows, *options, "none", temperature**2)
    return (loss * keep.to(loss.dtype)).sum() / max(len(loss), 1)
