"""Prompts added to images: a part of each modality's own, and a part common to both."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vifast import _checks


def _linear(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class _Specific(nn.Module):
    """Linear, batch normalisation, linear for the cells of one modality, which a mask selects."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.down, self.norm, self.up = _linear(width, hidden), nn.BatchNorm1d(hidden), _linear(hidden, width)

    def forward(self, cells: Tensor, own: Tensor) -> Tensor:
        """cells [B, G, width], own [B] bool: the prompt [B, G, width], zero in the rows of the other modality."""
        own = own[:, None, None]
        hidden = self.down(cells)
        return torch.where(own, self.up(self._normalized(hidden, own).to(hidden.dtype)), 0.0)

    def _normalized(self, hidden: Tensor, own: Tensor) -> Tensor:
        norm, hidden = self.norm, hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        mean, var = norm.running_mean, norm.running_var
        if norm.training:
            count = own.sum() * hidden.size(1)
            size = count.clamp(min=1)
            # The other modality's rows must not reach the statistics even where they are NaN: selected, not multiplied.
            mean = torch.where(own, hidden, 0.0).sum((0, 1)) / size
            var = torch.where(own, hidden - mean, 0.0).square().sum((0, 1)) / size
            with torch.no_grad():
                share = norm.momentum * (count > 0)
                norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
                unbiased = var * (size / (size - 1).clamp(min=1))
                norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)
                norm.num_batches_tracked += count > 0
        return (hidden - mean) * ((var + norm.eps).rsqrt() * norm.weight) + norm.bias


class _Common(nn.Module):
    """Linear, a gated mixture of the hidden map and its instance normalisation, linear."""

    def __init__(self, width: int, hidden: int, gate: int, running_at_eval: bool):
        super().__init__()
        self.down, self.up = _linear(width, hidden), _linear(hidden, width)
        self.norm = nn.InstanceNorm2d(hidden, affine=True, track_running_stats=True)
        self.gate_raw, self.gate_normed = (
            nn.Sequential(
                nn.Conv2d(hidden, gate, 1, bias=False), nn.ReLU(), nn.Conv2d(gate, hidden, 1, bias=False), nn.Sigmoid()
            )
            for _ in range(2)
        )
        self.running_at_eval = running_at_eval

    def forward(self, cells: Tensor, grid: tuple[int, int]) -> Tensor:
        hidden = self.down(cells).transpose(1, 2).unflatten(2, grid)
        return self.up(functional.relu(self.mixed(hidden)).flatten(2).transpose(1, 2))

    def mixed(self, hidden: Tensor) -> Tensor:
        """a H + (1 - a) b N of a map H [B, hidden, h, w]: N its instance normalisation, a and b the gates of both."""
        norm = self.norm
        if norm.training or self.running_at_eval:
            normed = norm(hidden)
        else:
            normed = functional.instance_norm(hidden, weight=norm.weight, bias=norm.bias, eps=norm.eps)
        share = self.gate_raw(hidden)
        return share * hidden + (1 - share) * (self.gate_normed(normed) * normed)


class ModalityPrompts(nn.Module):
    r"""Input-conditioned prompts in image space: x' = x + P_specific(modality) + P_common.

    The image is cut into cells of ``cell x cell`` pixels, t their vectors (channel, row, column), and

    .. math:: P_{specific} = C_m \mathrm{BN}_m(A_m t), \qquad P_{common} = F\,\mathrm{relu}(a H + (1 - a) b N),

    with H = E t on the grid of cells, N its instance normalisation, and gates a, b of two 1x1 convolutions from H and
    N. Each modality has parameters and batch statistics of its own; one that is absent keeps its statistics. Every
    linear map has a bias, the gates none; both parts are put back into the image and then dropped out.

    Args:
        channels: of the image.
        cell: side of a cell.
        specific: hidden width of the specific part; 0 leaves it out.
        common: hidden width of the common part; 0 leaves it out, if the other is there.
        gate: hidden width of its gates.
        dropout: probability of either part's pixels, in 0..1.
        running_at_eval: in eval mode normalise instances by running statistics, as the released code does, in place
            of their own.

    Shapes: ``images [B, channels, H, W]`` with H and W multiples of ``cell`` and more than one cell, ``modality [B]``
    (0 visible, 1 infrared); out: images + P and P, both as ``images``.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: a few arrays of the size of the images. Source: CKDA, spec ckda 3 (MSP and MCP).

    >>> prompts = ModalityPrompts()
    >>> prompted, prompt = prompts(torch.zeros(2, 3, 64, 32), torch.tensor([0, 1]))
    >>> prompted.shape
    torch.Size([2, 3, 64, 32])
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        cell: int = 16,
        specific: int = 16,
        common: int = 8,
        gate: int = 2,
        dropout: float = 0.1,
        running_at_eval: bool = False,
    ):
        for name, value in {"channels": channels, "cell": cell, "gate": gate}.items():
            _checks.count(name, value)
        _checks.count("specific", specific, 0)
        _checks.count("common", common, 0 if specific else 1)
        _checks.non_negative("dropout", dropout)
        if dropout > 1:
            raise ValueError(f"dropout: expected a probability in 0..1, got {dropout}")
        super().__init__()
        width = channels * cell * cell
        self.channels, self.cell, self.dropout = channels, cell, dropout
        modalities = ("visible", "infrared") if specific else ()
        self.specific = nn.ModuleList(_Specific(width, specific) for _ in modalities)
        self.common = _Common(width, common, gate, running_at_eval) if common else None

    def forward(self, images: Tensor, modality: Tensor) -> tuple[Tensor, Tensor]:
        grid = self._grid(images)
        modality = _checks.labels("modality", modality, "images", images)
        if len(images) == 0:
            return images, torch.zeros_like(images)
        side = self.cell
        cells = functional.pixel_unshuffle(images, side).flatten(2).transpose(1, 2)  # [B, cells, channels * side**2]
        parts = [] if self.common is None else [self.common(cells, grid)]
        if self.specific:
            parts.insert(0, sum(part(cells, modality == m) for m, part in enumerate(self.specific)))
        prompt = sum(self._image(part, grid) for part in parts)
        return images + prompt, prompt

    def _image(self, cells: Tensor, grid: tuple[int, int]) -> Tensor:
        image = functional.pixel_shuffle(cells.transpose(1, 2).unflatten(2, grid), self.cell)
        return functional.dropout(image, self.dropout, self.training)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        _checks.feature_map("images", images)
        (c, h, w), side = images.shape[1:], self.cell
        if c != self.channels or h % side or w % side:
            wanted = f"[B, {self.channels}, H, W] with H and W multiples of {side}"
            raise ValueError(f"images: expected {wanted}, got shape {list(images.shape)}")
        if h * w == side * side:
            raise ValueError(f"images: expected more than one cell of {side} x {side}, got shape {list(images.shape)}")
        return h // side, w // side
