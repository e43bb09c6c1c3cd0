from pathlib import Path

import numpy as np
import pytest
import torch

from vifast.nn import GeM

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_gem.npz"


@pytest.mark.parametrize(
    ("case", "module"),
    [
        ("a__", GeM()),
        ("b__", GeM()),
        ("c__", GeM()),
        ("a__agw_", GeM(clamp=False, eps=1e-12)),
        ("b__agw_", GeM(clamp=False, eps=1e-12)),
    ],
)
def test_golden_values_and_gradients(case, module):
    with np.load(GOLDEN) as golden:
        x, out, grad = (torch.from_numpy(golden[f"{case}{name}"]).double() for name in ("x", "out", "grad_x"))
        cotangent = torch.from_numpy(golden[f"{case[0]}__ct"]).double()
    x.requires_grad_()
    pooled = module(x)
    pooled.backward(cotangent)
    torch.testing.assert_close(pooled, out, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x.grad, grad, rtol=1e-9, atol=1e-9)


def test_p_one_is_the_mean_and_large_p_nears_the_maximum():
    x = torch.rand(2, 3, 4, 5) + 0.5
    torch.testing.assert_close(GeM(p=1.0)(x), x.mean((2, 3)))
    torch.testing.assert_close(GeM(p=200.0)(x.double()), x.double().amax((2, 3)), rtol=0.05, atol=0)


def test_learnable_exponent_gets_a_gradient():
    module = GeM(learnable=True)
    module(torch.rand(2, 3, 4, 5)).sum().backward()
    assert module.p.grad.abs() > 0
    assert "p=3, learnable=True" in repr(module)
    assert list(GeM().parameters()) == []


@pytest.mark.parametrize("module", [GeM(), GeM(clamp=False, eps=1e-12)])
def test_all_zero_channel_is_finite(module):
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    module(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_low_precision_maps_are_pooled_in_float32():
    x = torch.rand(2, 3, 8, 4).half()
    pooled = GeM()(x)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, GeM()(x.float()))


def test_rejects():
    with pytest.raises(ValueError, match="p: expected a number > 0, got 0"):
        GeM(p=0)
    with pytest.raises(ValueError, match=r"eps: expected a number > 0, got -1\.0"):
        GeM(eps=-1.0)
    with pytest.raises(ValueError, match=r"x: expected a map \[N, C, H, W\], got shape \[2, 3\]"):
        GeM()(torch.zeros(2, 3))
