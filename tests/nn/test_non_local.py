import pytest
import torch

from vifast.nn import NonLocal


def definition(block, x):
    """The affinity written out: theta(x)^T phi(x) / HW as an HW x HW matrix, applied to g(x)."""
    theta, phi, g = (conv(x).flatten(2).transpose(1, 2) for conv in (block.theta, block.phi, block.g))
    affinity = theta @ phi.transpose(1, 2) / theta.size(1)
    y = (affinity @ g).transpose(1, 2).unflatten(2, x.shape[2:])
    return x + block.norm(block.out(y))


@pytest.mark.parametrize("embed", [1, 3])
def test_equals_the_written_out_affinity(embed):
    torch.manual_seed(0)
    block = NonLocal(8, embed=embed).double()
    torch.nn.init.normal_(block.norm.weight)
    torch.nn.init.normal_(block.norm.bias)
    x = torch.randn(2, 8, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(block(x), definition(block, x))


def test_starts_as_identity_and_can_learn():
    x = torch.randn(2, 8, 5, 3)
    block = NonLocal(8)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.norm.weight.grad.abs().sum() > 0


def test_rejects_embed():
    with pytest.raises(ValueError, match="embed: expected an integer >= 1, got 0"):
        NonLocal(8, embed=0)
