"""Non-local block."""

from torch import Tensor, nn


class NonLocal(nn.Module):
    r"""Residual non-local block with dot-product affinity, identity at the start of training.

    .. math:: y = \tfrac{1}{HW}\, \theta(x)\, \big(\phi(x)^\top g(x)\big), \qquad z = x + \mathrm{BN}(W y)

    theta, phi, g are 1x1 convolutions C -> embed with bias, W one embed -> C. Without a softmax the product
    may be taken from the right, which gives the same y with an ``embed x embed`` matrix in place of HW x HW.
    BN starts with scale and shift 0, so the block adds nothing until it has learned to.

    Args:
        channels: C of the map.
        embed: inner channels; AGW's published expression comes to 1.

    Shapes: ``[N, channels, H, W]`` to the same. Memory besides: ``O(N * embed * (HW + embed))``.

    Raises:
        ValueError: ``embed`` < 1.

    Source: Wang et al. 2018, "Non-local Neural Networks", dot-product version; AGW (Ye et al. 2021).

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
        theta, phi, g = (conv(x).flatten(2) for conv in (self.theta, self.phi, self.g))  # [N, embed, HW]
        context = g @ phi.transpose(1, 2) / theta.size(2)  # [N, embed, embed]
        y = (context @ theta).unflatten(2, x.shape[2:])  # [N, embed, H, W]
        return x + self.norm(self.out(y))
