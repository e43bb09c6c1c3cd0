"""Batch normalisation with statistics per part of the batch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vifast import _checks


class _Split:
    """What the two classes below put over `torch.nn.BatchNorm1d` and `2d`."""

    def __init__(self, num_features: int, *, splits: int = 2, repeats: int = 1, **options):
        super().__init__(num_features, **options)
        self._set(splits, repeats)

    def _set(self, splits: int, repeats: int) -> None:
        _checks.count("splits", splits)
        _checks.count("repeats", repeats)
        if repeats > 1 and self.momentum is None:
            raise ValueError(f"repeats: expected 1 without momentum, got {repeats}")
        self.splits, self.repeats = splits, repeats

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) == 0:
            return super().forward(input)
        return self.by_parts(super().forward, input)

    def by_parts(self, forward: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """What ``forward``, which moves the running statistics, makes of each part of the tensors."""
        if len(tensors[0]) % self.splits:
            expected = f"expected a multiple of {self.splits} images"
            raise ValueError(f"input: {expected}, got shape {list(tensors[0].shape)}")
        # As data: a pass in training mode saves its statistics for the backward, which does not look at them.
        tracked = [] if self.running_mean is None else [self.running_mean.data, self.running_var.data]
        before = [value.clone() for value in tracked] if self.repeats > 1 else []
        parts = [forward(*part) for part in zip(*(x.chunk(self.splits) for x in tensors), strict=True)]
        for value, old in zip(tracked, before, strict=False):
            share = (1 - self.momentum) ** self.splits  # of what was there, after a pass
            added = value - share * old
            for _ in range(self.repeats - 1):
                value.mul_(share).add_(added)
        if before:
            self.num_batches_tracked += (self.repeats - 1) * self.splits
        return torch.cat(parts)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, splits={self.splits}"


class SplitBatchNorm1d(_Split, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` in the same way as `SplitBatchNorm2d`.

    >>> SplitBatchNorm1d(3, splits=2)(torch.rand(4, 3)).shape
    torch.Size([4, 3])
    """


class SplitBatchNorm2d(_Split, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose training statistics are those of each consecutive part of the batch.

    A batch of visible images followed by infrared ones goes through a network in one pass, and its output and running
    statistics are those of a pass per modality: running statistics are updated part after part. In eval mode, and in
    its state dict, it is a BatchNorm2d.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as in BatchNorm2d.
        splits: number of equal parts of the batch.
        repeats: running statistics move as if the batch had come that many times.

    Shapes: ``[N, num_features, H, W]`` to the same; in training mode N is a multiple of ``splits``.

    Raises:
        TypeError, ValueError: ``splits`` or ``repeats`` not an integer >= 1; repeats of an average of all batches
            (``momentum`` None); N not a multiple of ``splits``; whatever BatchNorm2d raises for a part.

    Source: spec dakd H6.

    >>> SplitBatchNorm2d(3, splits=2)(torch.rand(4, 3, 8, 4)).shape
    torch.Size([4, 3, 8, 4])
    """


def split_batch_norms(module: nn.Module, splits: int = 2, *, repeats: int = 1) -> nn.Module:
    """``module`` itself, every BatchNorm1d and 2d in it, of subclasses as well, in its split form.

    Parameters, buffers and names in the state dict stay what they are.

    Raises:
        TypeError, ValueError: as `SplitBatchNorm2d`.

    >>> split_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))[1]
    SplitBatchNorm2d(4, ..., splits=2)
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            for plain, split in ((nn.BatchNorm1d, SplitBatchNorm1d), (nn.BatchNorm2d, SplitBatchNorm2d)):
                if isinstance(child, plain):
                    norm = split.__new__(split)
                    norm.__dict__.update(child.__dict__)  # the same parameters and buffers, frozen or not
                    norm._set(splits, repeats)
                    setattr(parent, name, norm)
    return module
