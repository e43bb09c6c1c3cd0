import copy

import pytest
import torch
from torch.testing import assert_close

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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_rank_one_keeps_gradients_and_running_statistics(layout, momentum):
    block = NonLocal(8).double()
    block.norm.momentum = momentum
    for parameter in block.norm.parameters():
        torch.nn.init.normal_(parameter)
    written_out = copy.deepcopy(block)
    for training in (True, True, False):
        x = torch.randn(3, 8, 5, 3, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        ours, theirs = block.train(training)(x), definition(written_out.train(training), x)
        assert_close(ours, theirs)
        assert ours.stride() == x.stride()
        cotangent = torch.randn_like(ours)
        grads = torch.autograd.grad(ours, [x, *block.parameters()], cotangent)
        wanted = torch.autograd.grad(theirs, [x, *written_out.parameters()], cotangent)
        for one, two in zip(grads, wanted, strict=True):
            assert_close(one, two, rtol=1e-7, atol=1e-9)
        assert_close(block.state_dict(), written_out.state_dict())


def test_other_norms_and_untracked_statistics_take_their_own_way():
    x = torch.randn(2, 8, 5, 3)
    for norm in (torch.nn.BatchNorm2d(8, track_running_stats=False), torch.nn.InstanceNorm2d(8, affine=True)):
        block = NonLocal(8)
        block.norm = norm
        torch.nn.init.normal_(norm.weight)
        assert_close(block(x), definition(block, x), rtol=1e-4, atol=1e-5)


def test_low_precision_maps_keep_their_dtype():
    block = NonLocal(8)
    torch.nn.init.normal_(block.norm.weight)
    x = torch.randn(2, 8, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x).dtype == torch.float32
    assert_close(block.bfloat16()(x.bfloat16()).float(), block.float()(x), rtol=0.05, atol=0.05)


def test_starts_as_identity_and_can_learn():
    x = torch.randn(2, 8, 5, 3)
    block = NonLocal(8)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.norm.weight.grad.abs().sum() > 0


def test_rejects_embed():
    with pytest.raises(ValueError, match="embed: expected an integer >= 1, got 0"):
        NonLocal(8, embed=0)


def test_one_position_has_no_variance():
    with pytest.raises(ValueError, match=r"^x: expected more than one position in training mode, got shape"):
        NonLocal(8)(torch.zeros(1, 8, 1, 1))
