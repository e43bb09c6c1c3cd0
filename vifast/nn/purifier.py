"""Purification of a map by instance normalisation and two masks."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vifast import _checks
from vifast.kernels.purifier import instance_stats, normalized, purifier
from vifast.kernels.purifier_gates import purifier_gates


class Purified(NamedTuple):
    """GeM vectors ``[B, C]`` in float32 of five maps, or the maps themselves.

    x is the map, u its instance normalisation, M_x and M_u the masks made of them.

    >>> Purified(*torch.zeros(5, 2, 8)).fused.shape
    torch.Size([2, 8])
    """

    fused: Tensor  #: of M_u * M_x * (x + u)
    raw: Tensor  #: of x
    masked: Tensor  #: of M_x * x
    normed: Tensor  #: of u
    normed_masked: Tensor  #: of M_u * u


def _gate(channels: int, hidden: int) -> nn.Sequential:
    """Two 1x1 convolutions; the sigmoid behind them is taken where the mask is used."""
    down, up = nn.Conv2d(channels, hidden, 1, bias=False), nn.Conv2d(hidden, channels, 1, bias=False)
    return nn.Sequential(down, nn.ReLU(), up)


class InstanceNormPurifier(nn.Module):
    r"""Purifier guided by instance normalisation, with the GeM vectors (p = 3, eps 1e-6) of all its maps.

    .. math:: u = \mathrm{IN}(x), \quad M_u = \sigma(A_2 \mathrm{relu}(A_1 u)), \quad
              M_x = \sigma(E_2 \mathrm{relu}(E_1 x)), \quad z = M_u \odot M_x \odot (x + u)

    The masks have one value per channel and position. IN is affine with tracked running statistics, which are used in
    eval mode. Parameters: ``norm`` is IN, ``gate_normed`` holds A_1, A_2 as items 0 and 2, ``gate_raw`` E_1, E_2.

    Args:
        channels: C of the map.
        reduction: C / reduction channels between the two convolutions of a mask.

    Shapes: ``x [B, C, H, W]``, contiguous or channels-last, to :class:`Purified`, vectors ``[B, C]`` in float32
    (float64 for float64); with ``return_maps=True`` a pair, the same and a :class:`Purified` of maps.

    Memory: the two masks before their sigmoid, kept for the backward with x. Nothing else has the size of a map, not
    even u, unless maps are asked for.

    Raises:
        TypeError, ValueError: ``reduction`` not an integer >= 1 that divides ``channels``; a map that is not
            ``[B, channels, H, W]``; in training mode one of a single position, which has no variance.

    Source: Ren & Zhang 2024 (IDKL), spec idkl 3.

    >>> x = torch.rand(2, 32, 6, 3)
    >>> InstanceNormPurifier(32)(x).fused.shape
    torch.Size([2, 32])
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        for name, value in (("channels", channels), ("reduction", reduction)):
            _checks.count(name, value)
        if channels % reduction:
            raise ValueError(f"reduction: expected a divisor of {channels} channels, got {reduction}")
        self.norm = nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)
        self.gate_normed = _gate(channels, channels // reduction)
        self.gate_raw = _gate(channels, channels // reduction)

    def forward(self, x: Tensor, return_maps: bool = False) -> Purified | tuple[Purified, Purified]:
        _checks.feature_map("x", x)
        norm = self.norm
        if x.size(1) != norm.num_features:
            raise ValueError(f"x: expected {norm.num_features} channels, got shape {list(x.shape)}")
        if norm.training and x.size(2) * x.size(3) == 1:
            raise ValueError(f"x: expected more than one position in training mode, got shape {list(x.shape)}")
        acc, instance = torch.promote_types(x.dtype, torch.float32), norm.training
        if instance:
            mean, var = instance_stats(x.detach())
            if len(x):
                self._track(mean, var, x.size(2) * x.size(3))
        else:
            mean, var = norm.running_mean.to(acc), norm.running_var.to(acc)
        by_image = (r.expand(x.shape[:2]) for r in (mean, (var + norm.eps).rsqrt()))
        rows = *by_image, norm.weight.to(acc), norm.bias.to(acc)
        gates = purifier_gates(x, *self._convolutions(x.device.type), *rows, instance)[:2]
        pooled = Purified(*purifier(x, *gates, *rows, instance).unbind(0))
        if not return_maps:
            return pooled
        u = normalized(x.to(acc), *rows, instance).to(x.dtype)
        mask_u, mask_x = (gate.sigmoid() for gate in gates)
        return pooled, Purified(mask_u * mask_x * (x + u), x, mask_x * x, u, mask_u * u)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, positions: int) -> None:
        """Running statistics move towards the images' mean of their own, the variance's without its bias."""
        norm = self.norm
        for running, now in ((norm.running_mean, mean), (norm.running_var, var * (positions / (positions - 1)))):
            running.lerp_(now.mean(0).to(running.dtype), norm.momentum)

    def _convolutions(self, device: str) -> list[Tensor]:
        """Their weights, in the type that autocast would multiply in."""
        convs = [gate[i].weight for gate in (self.gate_normed, self.gate_raw) for i in (0, 2)]
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            convs = [conv.to(dtype) for conv in convs]
        return convs

    def extra_repr(self) -> str:
        hidden = self.gate_raw[0].out_channels
        return f"{self.norm.num_features}, reduction={self.norm.num_features // hidden}"
