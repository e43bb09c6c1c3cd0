"""Generalised-mean pooling."""

import torch
from torch import Tensor, nn

from vifast.functional.gem_pool import gem_pool


class GeM(nn.Module):
    r"""Generalised-mean pooling over the positions of a map, in float32 whatever the map's dtype.

    .. math:: g_c = \Big(\tfrac{1}{HW} \sum_{hw} \max(x_{chw}, \epsilon)^p\Big)^{1/p}

    With ``clamp=False`` the power is taken of ``x`` itself and ``eps`` is added to the mean:
    ``g = (mean x**p + eps)**(1/p)``. That is AGW's pooling at ``eps=1e-12``; it needs maps >= 0 (after a
    ReLU), for a negative value has no real power under most p.

    Args:
        p: exponent > 0; 1 is the mean, large p approaches the maximum.
        learnable: make p a parameter (one for all channels).
        clamp: which of the two forms.
        eps: > 0; keeps the root's gradient finite on an all-zero channel.

    Shapes: ``x [N, C, H, W]`` to ``[N, C]`` (float64 for float64 maps). Clamped entries get no gradient.

    Raises:
        ValueError: ``p`` or ``eps`` not positive; a map that is not ``[N, C, H, W]``.

    Source: Radenovic et al. 2018, eq. 3; IDKL (clamped, p = 3), AGW (Ye et al. 2021, not clamped, p = 3).

    >>> GeM(p=1.0)(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[2.]])
    """

    def __init__(self, p: float = 3.0, *, learnable: bool = False, clamp: bool = True, eps: float = 1e-6):
        if not p > 0:
            raise ValueError(f"p: expected a number > 0, got {p!r}")
        if not eps > 0:
            raise ValueError(f"eps: expected a number > 0, got {eps!r}")
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p))) if learnable else float(p)
        self.clamp, self.eps = clamp, eps

    def forward(self, x: Tensor) -> Tensor:
        return gem_pool(x, p=self.p, eps=self.eps, clamp=self.clamp)

    def extra_repr(self) -> str:
        learnable = isinstance(self.p, nn.Parameter)
        p = self.p.item() if learnable else self.p
        return f"p={p:g}, learnable={learnable}, clamp={self.clamp}, eps={self.eps:g}"
