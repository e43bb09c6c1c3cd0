"""Non-local block."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vifast.nn.split_batch_norm import SplitBatchNorm2d


class NonLocal(nn.Module):
    r"""Residual non-local block with dot-product affinity, identity at the start of training.

    .. math:: y = \tfrac{1}{HW}\, \theta(x)\, \big(\phi(x)^\top g(x)\big), \qquad z = x + \mathrm{BN}(W y)

    theta, phi, g are 1x1 convolutions C -> embed with bias, W one embed -> C. Without a softmax the product
    may be taken from the right, which gives the same y with an ``embed x embed`` matrix in place of HW x HW; the three
    convolutions are run as one. For ``embed=1`` y is a scalar field, whose mean and variance give BN's statistics of
    every channel, so that W, BN and the sum are one pass over x. BN starts with scale and shift 0, so the block adds
    nothing until it has learned to.

    Args:
        channels: C of the map.
        embed: inner channels; AGW's published expression comes to 1.

    Shapes: ``[N, channels, H, W]`` to the same. Memory besides: ``O(N * embed * (HW + embed))``.

    Raises:
        ValueError: ``embed`` < 1.

    Source: Wang et al. 2018, "Non-local Neural Networks", dot-product version; AGW (Ye et al. 2021); spec dakd H5.

    >>> import torch
    >>> x = torch.randn(2, 16, 6, 3)
    >>> torch.equal(NonLocal(16)(x), x)
    True
    """

    def __init__(self, channels: int, *, embed: int = 1):
        if embed < 1:
            raise ValueError(f"embed: expected an integer >= 1, got {embed!r}")
        super().__init__()
        self.theta = nn.Conv2d(channels, embed, 1)
        self.phi = nn.Conv2d(channels, embed, 1)
        self.g = nn.Conv2d(channels, embed, 1)
        self.out = nn.Conv2d(embed, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        convs = self.theta, self.phi, self.g
        weight, bias = (torch.cat([getattr(conv, name) for conv in convs]) for name in ("weight", "bias"))
        theta, phi, g = functional.conv2d(x, weight, bias).flatten(2).chunk(3, 1)  # [N, embed, HW], one read of x
        if theta.size(1) == 1 and type(self.norm) in (nn.BatchNorm2d, SplitBatchNorm2d):
            y = theta * (phi * g).mean(2, keepdim=True)
            if self.norm.training and isinstance(self.norm, SplitBatchNorm2d):
                return self.norm.by_parts(self._add_rank_one, x, y)
            return self._add_rank_one(x, y)
        context = g @ phi.transpose(1, 2) / theta.size(2)  # [N, embed, embed]
        y = (context @ theta).unflatten(2, x.shape[2:])  # [N, embed, H, W]
        return x + self.norm(self.out(y))

    def _add_rank_one(self, x: Tensor, y: Tensor) -> Tensor:
        """x + BN(w_k y + b_k) for a field y [N, 1, HW]: the statistics of every channel follow from those of y."""
        norm = self.norm
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        weight, bias = self.out.weight.flatten(), self.out.bias
        if norm.training or norm.running_mean is None:
            if y.numel() == 1:
                raise ValueError(f"x: expected more than one position in training mode, got shape {list(x.shape)}")
            var, center = torch.var_mean(wide, correction=0)
            # BN takes the bias out again; data-parallel training still waits for its gradient, zero.
            shift, spread = norm.bias + 0 * bias, weight.square() * var
            if norm.running_mean is not None:
                self._track(weight * center + bias, spread * (y.numel() / (y.numel() - 1)))
        else:
            center, spread = 0.0, norm.running_var
            shift = norm.bias + norm.weight * (bias - norm.running_mean) * (spread + norm.eps).rsqrt()
        scale = norm.weight * weight * (spread + norm.eps).rsqrt()
        # As products of depth 2, which also keeps the maps of the gradient's sums out of memory.
        fields = torch.cat((wide - center, torch.ones_like(wide)), 1).to(x.dtype)
        scales = torch.stack((scale, shift), 1).to(x.dtype).expand(len(x), -1, -1)
        planes = x.flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            if planes.stride(1) == 1:  # channels-last
                z = torch.baddbmm(planes.mT, fields.mT, scales.mT).mT
            else:
                z = torch.baddbmm(planes, scales, fields)
        return z.unflatten(2, x.shape[2:])

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        norm = self.norm
        norm.num_batches_tracked += 1
        share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
        norm.running_var.lerp_(var.to(norm.running_var.dtype), share)
