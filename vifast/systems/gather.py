"""Rows of all processes as one batch, with gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        everyone = rows.new_empty((dist.get_world_size() * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(everyone, rows.contiguous())
        return everyone

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        count = len(grad) // dist.get_world_size()
        grad = grad.contiguous()
        if dist.get_backend() == "nccl":
            own = grad.new_empty((count, *grad.shape[1:]))
            dist.reduce_scatter_tensor(own, grad)
            return own
        dist.all_reduce(grad)  # gloo has no scatter of sums
        return grad[dist.get_rank() * count :][:count]


def all_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows of all processes, in the order of their ranks; every process must bring as many.

    The backward sums what all processes ask of a row. Where each of them computes the same loss of the whole batch,
    that is the gradient times the number of processes, which the average of ``DistributedDataParallel`` divides by
    again: parameters get the gradient of one process with the whole batch.

    Without ``torch.distributed`` the tensors come back as they are.

    Bytes on the wire: every process receives all rows but its own, and their gradients.

    >>> import torch
    >>> all_rows(torch.ones(2, 3))[0].shape
    torch.Size([2, 3])
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensors
    return tuple(_AllRows.apply(rows) for rows in tensors)
