"""Prompts added to images: a part of each modality's own, and a part common to both."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vifast import _checks
from vifast.kernels.prompt_hidden import prompt_hidden
from vifast.kernels.prompt_insertion import prompt_insertion
from vifast.kernels.prompt_mixture import prompt_mixture
from vifast.kernels.prompt_statistics import prompt_statistics


def _linear(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class _Specific(nn.Module):
    """Linear, batch normalisation, linear: the parameters of one modality's part."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.down, self.norm, self.up = _linear(width, hidden), nn.BatchNorm1d(hidden), _linear(hidden, width)


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

    def mixed(self, hidden: Tensor) -> Tensor:
        """a H + (1 - a) b N of a map H [B, hidden, h, w]: N its instance normalisation, a and b the gates of both."""
        modality = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        return _mixed(hidden.flatten(2), modality, (), self).view_as(hidden)


def _mixed(hidden: Tensor, modality: Tensor, specific: Sequence[_Specific], common: _Common | None) -> Tensor:
    """Planes [B, R, G] of the first linear maps to those of the second: normalised, and the common ones mixed."""
    parts = [*specific] if common is None else [*specific, common]
    norm = parts[0].norm
    instance = norm.training or common is None or not common.running_at_eval
    buffers = [buffer for part in specific for buffer in part.norm.buffers()] or [None] * 6
    buffers += [None] * 2 if common is None else [common.norm.running_mean, common.norm.running_var]
    batch = norm.training
    statistics = prompt_statistics(hidden.detach(), modality, *buffers, batch, instance, norm.eps, norm.momentum)
    affine = [torch.cat([getattr(part.norm, name) for part in parts]) for name in ("weight", "bias")]
    gates = [None] * 4
    if common is not None:
        gates = [gate[k].weight.flatten(1) for gate in (common.gate_raw, common.gate_normed) for k in (0, 2)]
    return prompt_mixture(hidden, modality, *statistics, *affine, *gates, batch, instance)


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
        dropout: probability of either part's pixels, in 0..1, rounded to a multiple of 2^-16.
        running_at_eval: in eval mode normalise instances by running statistics, as the released code does, in place
            of their own.

    Shapes: ``images [B, channels, H, W]`` with H and W multiples of ``cell`` and more than one cell, ``modality [B]``
    (0 visible, 1 infrared, as any other); out: images + P and P, both as ``images``, in float32 in between whatever
    autocast says. Both come of one op: the gradient of P is not that through images + P.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: both results, and a thirtieth of them; no mask is kept. Source: CKDA, spec ckda 3 (MSP and MCP).

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
        self._check(images)
        modality = _checks.labels("modality", modality, "images", images)
        if len(images) == 0:
            return images, torch.zeros_like(images)
        parts = [*self.specific] if self.common is None else [*self.specific, self.common]
        specific = self.specific[0].up.in_features if self.specific else 0
        down = torch.cat([part.down.weight for part in parts]), torch.cat([part.down.bias for part in parts])
        hidden = prompt_hidden(images, modality, *down, specific, self.cell)
        values = _mixed(hidden, modality, self.specific, self.common)
        up = torch.cat([part.up.weight for part in parts], 1), torch.stack([part.up.bias for part in parts])
        seed = None
        if self.training and self.dropout > 0:
            seed = torch.empty((), dtype=torch.int64, device=images.device).random_()  # drawn where it is read
        return prompt_insertion(images, values, modality, *up, seed, self.dropout, self.cell)

    def _check(self, images: Tensor) -> None:
        _checks.feature_map("images", images)
        (c, h, w), side = images.shape[1:], self.cell
        if c != self.channels or h % side or w % side:
            wanted = f"[B, {self.channels}, H, W] with H and W multiples of {side}"
            raise ValueError(f"images: expected {wanted}, got shape {list(images.shape)}")
        if h * w == side * side:
            raise ValueError(f"images: expected more than one cell of {side} x {side}, got shape {list(images.shape)}")
