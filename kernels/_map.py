"""What the ops on feature maps share: the layouts they read in place, and how Triton programs divide a map."""

import torch
from torch import Tensor

from vifast.kernels._lang import tl, triton


def channels_last(x: Tensor) -> bool:
    """Channels vary fastest; not where the map is contiguous as well, as with one channel or one position."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def dense_map(x: Tensor) -> Tensor:
    """The values that a kernel reads: ``x`` itself in either layout, otherwise a contiguous copy."""
    return x.detach() if channels_last(x) else x.detach().contiguous()


def like_map(x: Tensor) -> Tensor:
    """An empty map in the shape, dtype and layout of ``x``; contiguous where ``x`` has other strides."""
    layout = torch.channels_last if channels_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=layout)


def map_launch(x: Tensor, entries: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """Channels, positions and strides (image, channel, position) of a dense map, and blocks for one program.

    A program takes `entries` at once: whole planes where positions vary fastest, else 64 channels, 128 bytes of a half
    map in every position.
    """
    _, c, h, w = x.shape
    if channels_last(x):
        return (c, h * w, c * h * w, 1, c), {"BLOCK_C": 64, "BLOCK_P": entries // 64}
    block = min(entries, triton.next_power_of_2(h * w))
    return (c, h * w, c * h * w, h * w, 1), {"BLOCK_C": entries // block, "BLOCK_P": block}


@triton.jit
def tile_at(start, n_channels, positions, stride_n, stride_c, stride_p, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Offsets [BLOCK_C, BLOCK_P] into the map from position `start` on, and which of them exist."""
    block = tl.cdiv(n_channels, BLOCK_C)
    image = (tl.program_id(0) // block).to(tl.int64)
    c = (tl.program_id(0) % block) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = start + tl.arange(0, BLOCK_P)
    at = image * stride_n + c[:, None].to(tl.int64) * stride_c + p[None, :].to(tl.int64) * stride_p
    return at, (c[:, None] < n_channels) & (p[None, :] < positions)


@triton.jit
def row_at(n_channels, BLOCK_C: tl.constexpr):
    """Index in [N, C] of the channels of this program, and which of them exist."""
    block = tl.cdiv(n_channels, BLOCK_C)
    c = (tl.program_id(0) % block) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = (tl.program_id(0) // block).to(tl.int64) * n_channels + c
    return row, c < n_channels


def programs(x: Tensor, launch: dict[str, int]) -> tuple[int]:
    return (x.size(0) * triton.cdiv(x.size(1), launch["BLOCK_C"]),)
