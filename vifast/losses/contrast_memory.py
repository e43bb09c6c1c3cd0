"""Contrast of a student's rows with a teacher's, now and in the batches before."""

import torch
from torch import Tensor, nn

from vifast import _checks
from vifast.kernels.unit_rows import unit_rows

NEGATIVES = ("class", "instance")


class ContrastMemory(nn.Module):
    r"""InfoNCE from student to teacher: -log softmax of cos(student_i, teacher_i) / temperature among the negatives.

    Negatives are the teacher's rows of the batch and the last ``size`` rows of the batches before, all of them: nothing
    is drawn. In training the batch then takes the place of the oldest. The memory is of one process, and part of the
    state.

    Args:
        size: rows remembered.
        dim: their columns.
        temperature: above 0.
        negatives: rows of other identities (``"class"``), or of all other images (``"instance"``).

    Forward: student, teacher [N, dim] of any scale; labels [N] int64, or None for ``"instance"``. Gradient to the
    student only. Returns [N], float32 (float64 for float64); 0 without negatives, not where the student is the teacher.

    Memory: N x (N + size) products, and a copy of the memory for the backward.
    Source: Tian et al. 2020 (CRD), with the softmax of all in place of its noise-contrastive estimate; spec dakd 11.

    >>> rows = torch.eye(4)
    >>> memory = ContrastMemory(8, 4, temperature=1.0, negatives="instance")
    >>> [round(memory(rows, rows, None)[0].item(), 4) for _ in range(2)]  # e against 3, then against 3 + e + 3
    [0.7437, 1.4368]
    """

    def __init__(self, size: int, dim: int, *, temperature: float = 0.07, negatives: str = "class"):
        super().__init__()
        _checks.count("size", size)
        _checks.count("dim", dim)
        _checks.positive("temperature", temperature)
        _checks.one_of("negatives", negatives, NEGATIVES)
        self.temperature, self.negatives = float(temperature), negatives
        self.register_buffer("rows", torch.zeros(size, dim))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        student, teacher = unit_rows(student), unit_rows(teacher.detach())
        old = torch.arange(len(self.rows), device=student.device) < self.seen
        if self.negatives == "class":
            far = old & (labels.unsqueeze(1) != self.labels)
            near = labels.unsqueeze(1) != labels
        else:
            far, near = old.expand(len(student), -1), ~torch.eye(len(student), dtype=torch.bool, device=student.device)
        columns = torch.cat((teacher, self.rows.to(teacher.dtype)))  # a copy: the memory moves on before the backward
        with torch.autocast(student.device.type, enabled=False):
            logits = student @ columns.T / self.temperature
        own = logits.diagonal()
        logits = logits.masked_fill(~torch.cat((near, far), 1), -torch.inf)
        if self.training:
            self._remember(teacher, labels)
        return torch.cat((own.unsqueeze(1), logits), 1).logsumexp(1) - own

    @torch.no_grad()
    def _remember(self, teacher: Tensor, labels: Tensor | None) -> None:
        """The last rows of the batch, at the places after those seen last."""
        size, n = len(self.rows), len(teacher)
        first = max(n - size, 0)
        at = (self.seen + torch.arange(first, n, device=teacher.device)) % size
        self.rows.index_copy_(0, at, teacher[first:].to(self.rows.dtype))
        if labels is not None:
            self.labels.index_copy_(0, at, labels[first:])
        self.seen += n
