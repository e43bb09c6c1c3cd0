"""What the processes of a group say to each other, and agreement on errors: all of them raise, or none."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor


class Wire:
    """Collectives over tensors of any device; they travel on the one that the group's back end takes."""

    def __init__(self, group: dist.ProcessGroup | None):
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError("group: expected torch.distributed.init_process_group to have been called")
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group: expected a process group, got {type(group).__name__}")
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group: expected a group that this process is in")
        on_gpu = "nccl" in dist.get_backend(group)
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def broadcast(self, value: Tensor | None, shape, dtype: torch.dtype, source: int) -> Tensor:
        """``value`` of rank ``source``, on the wire's device; the others give None."""
        if self.rank == source:
            sent = value.to(self.device).contiguous()
        else:
            sent = torch.empty(shape, dtype=dtype, device=self.device)
        # As bytes: back ends differ in the half types they know.
        dist.broadcast(sent.view(-1).view(torch.uint8), self._global(source), group=self.group)
        return sent

    def gather(self, value: Tensor) -> Tensor:
        """[ranks, ...] of equal shapes, where ``value`` is."""
        sent = value.to(self.device).contiguous()
        got = sent.new_empty(self.size, *sent.shape)
        dist.all_gather(list(got.unbind(0)), sent, group=self.group)
        return got.to(value.device)

    def add(self, value: Tensor) -> Tensor:
        """Sum over ranks, where ``value`` is; exact where all but one rank give zeros, and for integers."""
        total = value.to(self.device, copy=True)
        dist.all_reduce(total, group=self.group)
        return total.to(value.device)

    def gather_rows(self, value: Tensor, counts: list[int]) -> Tensor:
        """The rows of all ranks one after the other, of which each gives ``counts[rank]``."""
        wide = value.new_zeros(max(counts), *value.shape[1:])
        wide[: len(value)] = value
        return torch.cat([part[:count] for part, count in zip(self.gather(wide), counts, strict=True)])

    def agree(self, error: Exception | None) -> None:
        """Raises ``error`` where a rank brought one, and on every other rank an error of its type that tells it."""
        failed = self.add(torch.tensor([int(error is not None)]))
        if not int(failed):
            return
        told: list = [None] * self.size
        dist.all_gather_object(told, None if error is None else (type(error), str(error)), group=self.group)
        if error is not None:
            raise error
        rank, (kind, text) = next((rank, what) for rank, what in enumerate(told) if what is not None)
        try:
            other = kind(f"rank {rank}: {text}")
        except TypeError:  # an error that is not made from one string
            other = RuntimeError(f"rank {rank}: {kind.__name__}: {text}")
        raise other

    def same(self, name: str, value: bytes) -> None:
        """ValueError on every rank where one gave another ``value``."""
        digest = hashlib.sha256(value).digest()[:8]
        given = self.gather(torch.frombuffer(bytearray(digest), dtype=torch.int64))
        odd = (given != given[0]).nonzero()
        if len(odd):
            raise ValueError(f"{name}: expected the same on every rank, rank {int(odd[0, 0])} was given another than 0")

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def attempt(work, *arguments, **options):
    """(result, None), or (None, the error) for :meth:`Wire.agree`."""
    try:
        return work(*arguments, **options), None
    except Exception as error:
        return None, error
