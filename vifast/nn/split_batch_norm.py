"""Batch normalisation with statistics per part of the batch."""

import torch
from torch import Tensor, nn

from vifast import _checks


class SplitBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose training statistics are those of each consecutive part of the batch.

    A batch of visible images followed by infrared ones goes through a network in one pass, and its output and running
    statistics are those of a pass per modality: running statistics are updated part after part. In eval mode, and in
    its state dict, it is a BatchNorm2d.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as in BatchNorm2d.
        splits: number of equal parts of the batch.

    Shapes: ``[N, num_features, H, W]`` to the same; in training mode N is a multiple of ``splits``.

    Raises:
        TypeError, ValueError: ``splits`` not an integer >= 1; N not a multiple of it; whatever BatchNorm2d raises for
            a part.

    Source: spec dakd H6.

    >>> SplitBatchNorm2d(3, splits=2)(torch.rand(4, 3, 8, 4)).shape
    torch.Size([4, 3, 8, 4])
    """

    def __init__(self, num_features: int, *, splits: int = 2, **options):
        _checks.count("splits", splits)
        super().__init__(num_features, **options)
        self.splits = splits

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) == 0:
            return super().forward(input)
        if len(input) % self.splits:
            raise ValueError(f"input: expected a multiple of {self.splits} images, got shape {list(input.shape)}")
        return torch.cat([nn.BatchNorm2d.forward(self, part) for part in input.chunk(self.splits)])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, splits={self.splits}"
