import torch
from torch import Tensor

from vifast import _checks
from vifast.kernels import gem_pool as _op


def gem_pool(x: Tensor, *, p: float | Tensor = 3.0, eps: float = 1e-6, clamp: bool = True) -> Tensor:
    r"""Generalised-mean pooling over the positions of a map: g_c = (mean_hw max(x_chw, eps)^p)^(1/p).

    ``clamp=False`` takes the power of ``x`` itself and adds ``eps`` to the mean, g = (mean x^p + eps)^(1/p), as AGW
    does with ``eps=1e-12``; it needs maps >= 0, as a ReLU leaves them.

    Args:
        x: [N, C, H, W] of at least one position, contiguous or channels-last without a copy.
        p: exponent > 0, or a floating-point tensor of one such element, which then gets a gradient.
        eps: > 0.
        clamp: see above.

    Returns:
        [N, C], float32 for half maps. Powers are taken in float32: where one overflows the result is inf and the
        gradient of its channel 0. Clamped entries get no gradient.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: the result; the gradient in the layout and dtype of ``x``.
    Source: spec idkl 2; Radenovic et al. 2018, eq. 3.

    Example:
        >>> import torch
        >>> round(gem_pool(torch.tensor([[[[1.0, 2.0, -3.0]]]])).item(), 4)  # the cube root of (1 + 8) / 3
        1.4422
    """
    _checks.feature_map("x", x)
    _checks.positive("eps", eps)
    if not isinstance(p, Tensor):
        _checks.positive("p", p)
        return _op.gem_pool(x, None, float(p), float(eps), bool(clamp))
    if not p.is_floating_point():
        raise TypeError(f"p: expected a number or a floating-point tensor, got {p.dtype}")
    if p.numel() != 1:
        raise ValueError(f"p: expected one element, got shape {list(p.shape)}")
    _checks.same_device("p", p, "x", x)
    exponent = p.reshape(()).to(torch.promote_types(x.dtype, torch.float32))
    return _op.gem_pool(x, exponent, 0.0, float(eps), bool(clamp))
