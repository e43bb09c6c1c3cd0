"""Vision transformers whose parameters carry timm's names, with overlapping patches and a modality embedding."""

from __future__ import annotations

import os
from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from vifast import _checks
from vifast.models.weights import copy_tensors, read_tensors

PATCH = 16
_OURS = "network.backbone."  # before the names of a system's vision transformer


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, tokens: int | None) -> Tensor:
        """What the first ``tokens`` of x [B, N, D], or all, take from all."""
        if tokens is None:
            q, k, v = self._heads(self.qkv(x), 3)
        else:
            width = x.size(2)
            weights, biases = (part.split([width, 2 * width]) for part in (self.qkv.weight, self.qkv.bias))
            (q,) = self._heads(functional.linear(x[:, :tokens], weights[0], biases[0]), 1)
            k, v = self._heads(functional.linear(x, weights[1], biases[1]), 2)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # each [B, heads, N, D / heads]


class _MLP(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(functional.gelu(self.fc1(x)))))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, drop_path: float):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), _Attention(width, heads, dropout)
        self.norm2, self.mlp = nn.LayerNorm(width), _MLP(width, dropout)
        self.drop_path = drop_path

    def forward(self, x: Tensor, tokens: int | None = None) -> Tensor:
        """x [B, N, D] to the same, or to its first ``tokens`` alone."""
        x = self._sum(x[:, :tokens], self.attn(self.norm1(x), tokens))
        return self._sum(x, self.mlp(self.norm2(x)))

    def _sum(self, x: Tensor, branch: Tensor) -> Tensor:
        """Stochastic depth: in training an image goes without the branch at a rate, others have more of it."""
        if not (self.training and self.drop_path):
            return x + branch
        keep = 1 - self.drop_path
        return x + branch * branch.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)


class ViT(nn.Module):
    """A pre-norm vision transformer on overlapping patches; its output is that of the class token.

    As nothing else leaves the network, the last block computes keys and values of all tokens but everything else for
    the class token alone: the same output for 6.9 % fewer operations (of `vit_base`, forward and backward).

    Args:
        width, depth, heads: of the tokens, the blocks, the attention.
        image_size: (height, width) of the images.
        stride: of the patches of 16 x 16 pixels; what does not fill a patch at the right and the bottom is not seen.
        modalities: rows of an embedding that is added to all tokens of an image; 0 for none.
        dropout: of the sum of embeddings, of the attention's output and of both layers of the MLP.
        drop_path: stochastic depth of the last block; that of block i is its i / (depth - 1) part.

    Shapes: ``images [B, 3, H, W]`` and, with ``modalities``, ``modality [B]``, to ``[B, width]``.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Source: Dosovitskiy et al. 2021; overlap and modality embedding of spec ckda 2.1; parameter names of timm's
    ``vision_transformer.py``. LayerNorm's epsilon is PyTorch's, 1e-5, as in CKDA.

    >>> vit = create_vit("vit_tiny_demo", image_size=(64, 32), modalities=2)
    >>> vit(torch.zeros(2, 3, 64, 32), torch.tensor([0, 1])).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        *,
        image_size: tuple[int, int] = (256, 128),
        stride: int = 12,
        modalities: int = 0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        for name, value in (("width", width), ("depth", depth), ("heads", heads), ("stride", stride)):
            _checks.count(name, value)
        _checks.count("modalities", modalities, 0)
        _checks.within("dropout", dropout, 0, 1)
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path: expected at least 0 and below 1, got {drop_path}")
        if width % heads:
            raise ValueError(f"heads: expected a divisor of width {width}, got {heads}")
        if len(image_size) != 2 or min(image_size) < PATCH:
            raise ValueError(f"image_size: expected (height, width) of at least {PATCH}, got {image_size}")
        super().__init__()
        self.image_size, self.out_channels = tuple(image_size), width
        self.grid = tuple((side - PATCH) // stride + 1 for side in image_size)
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, PATCH, stride)))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], width))
        self.modality_embed = nn.Parameter(torch.empty(modalities, width)) if modalities else None
        self.pos_drop = nn.Dropout(dropout)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(_Block(width, heads, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith("bias") and "norm" not in name:
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor, modality: Tensor | None = None) -> Tensor:
        x = self.embedded(images, modality)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return self.norm(last(x, tokens=1)[:, 0])

    def embedded(self, images: Tensor, modality: Tensor | None = None) -> Tensor:
        """The tokens [B, 1 + h * w, width] that enter the first block."""
        if images.dim() != 4 or images.shape[1:] != (3, *self.image_size):
            wanted = [3, *self.image_size]
            raise ValueError(f"images: expected shape [B, {', '.join(map(str, wanted))}], got {list(images.shape)}")
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        added = self.pos_embed
        if self.modality_embed is not None:
            modality = _checks.labels("modality", modality, "images", images)
            added = added + functional.embedding(modality, self.modality_embed).unsqueeze(1)
        return self.pos_drop(torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + added)


VITS = {
    "vit_base": (768, 12, 12),
    "vit_tiny_demo": (64, 4, 2),  # the demo's: no published weights
}


def create_vit(name: str, **options) -> ViT:
    """A vision transformer by name, one of `VITS`; ``options`` are the keywords of `ViT`.

    Raises:
        ValueError: a name that is not in `VITS`, or an option out of range.

    >>> with torch.device("meta"):
    ...     create_vit("vit_base").grid
    (21, 10)
    """
    _checks.one_of("name", name, tuple(VITS))
    return ViT(*VITS[name], **options)


def load_vit(model: ViT, path: str | os.PathLike) -> list[str]:
    """Copies a timm ViT checkpoint of 16 x 16 patches, such as jx_vit_base_p16_224, into ``model``; or the weights of a
    run of CKDA, of which it takes the backbone.

    The classifier is left out. Positions of the square grid of patches are resized to the model's by bilinear
    interpolation, the class token's is kept; the modality embedding stays as it is.

    Returns:
        The names of the file that were left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged file; missing, unexpected or wrongly shaped names (all are named). The model is
            unchanged then.
    """
    tensors = read_tensors(path)
    own = {name.removeprefix(_OURS): value for name, value in tensors.items() if name.startswith(_OURS)}
    tensors = own or tensors
    for name, as_ours in (("patch_embed.proj.weight", _convolution), ("pos_embed", partial(_resized, grid=model.grid))):
        if name in tensors:
            tensors[name] = as_ours(tensors[name])
    return copy_tensors(
        model,
        tensors,
        path,
        optional=lambda name: name == "modality_embed",
        ignored=lambda name: name.startswith(("head.", "head_dist.", "pre_logits.")),
    )


def _convolution(weight: Tensor) -> Tensor:
    """The patch embedding, which is a linear layer in the oldest files."""
    return weight.unflatten(1, (-1, PATCH, PATCH)) if weight.dim() == 2 else weight


def _resized(position: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions [1, 1 + n * n, D] to [1, 1 + h * w, D]; of a grid that is not square they are left for the caller."""
    first, rest = position[:, :1], position[:, 1:].mT
    side = round(rest.size(-1) ** 0.5)
    if side * side != rest.size(-1):
        return position
    rest = functional.interpolate(rest.unflatten(2, (side, side)), size=grid, mode="bilinear", align_corners=False)
    return torch.cat((first, rest.flatten(2).mT), 1)
