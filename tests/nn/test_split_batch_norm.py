import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vifast.models import create
from vifast.nn import BNNeck, NonLocal, SplitBatchNorm1d, SplitBatchNorm2d, split_batch_norms


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize("splits", [1, 2, 3])
def test_one_pass_is_a_pass_per_part(splits, options):
    split, plain = SplitBatchNorm2d(4, splits=splits, **options), nn.BatchNorm2d(4, **options)
    for _ in range(2):
        x = torch.randn(6, 4, 5, 3, requires_grad=True)
        ours, theirs = split(x), torch.cat([plain(part) for part in x.chunk(splits)])
        assert torch.equal(ours, theirs)
        cotangent = torch.randn_like(ours)
        for one, two in zip(
            torch.autograd.grad(ours, [x, *split.parameters()], cotangent),
            torch.autograd.grad(theirs, [x, *plain.parameters()], cotangent),
            strict=True,
        ):
            assert_close(one, two)
    assert_close(split.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert torch.equal(split.eval()(x), plain.eval()(x))


def test_state_dicts_are_exchanged_with_batch_norm():
    split, plain = SplitBatchNorm2d(4), nn.BatchNorm2d(4)
    plain(torch.randn(4, 4, 3, 3))
    split.load_state_dict(plain.state_dict())
    plain.load_state_dict(copy.deepcopy(split.state_dict()))
    assert "splits=2" in repr(split)


def test_layout_and_empty_batch():
    x = torch.randn(4, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    assert SplitBatchNorm2d(4)(x).is_contiguous(memory_format=torch.channels_last)
    assert SplitBatchNorm2d(4)(x[:0]).shape == (0, 4, 3, 5)


def test_rejects():
    with pytest.raises(ValueError, match=r"^splits: expected an integer >= 1, got 0$"):
        SplitBatchNorm2d(4, splits=0)
    with pytest.raises(TypeError, match=r"^splits: expected an integer, got float$"):
        SplitBatchNorm2d(4, splits=2.0)
    with pytest.raises(ValueError, match=r"^repeats: expected an integer >= 1, got 0$"):
        SplitBatchNorm2d(4, repeats=0)
    with pytest.raises(ValueError, match=r"^repeats: expected 1 without momentum, got 2$"):
        SplitBatchNorm1d(4, repeats=2, momentum=None)
    with pytest.raises(ValueError, match=r"^input: expected a multiple of 2 images, got shape \[3, 4, 2, 2\]$"):
        SplitBatchNorm2d(4)(torch.zeros(3, 4, 2, 2))
    SplitBatchNorm2d(4).eval()(torch.zeros(3, 4, 2, 2))


def network():
    return nn.Sequential(
        create("resnet_tiny", width=8), NonLocal(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), BNNeck(64)
    )


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_a_network_in_one_pass_is_one_pass_per_part(repeats):
    """dakd 14.8; with repeats, that many passes of both parts in turn, of which the last counts."""
    split = network().double()
    nn.init.uniform_(split[1].norm.weight)
    plain = copy.deepcopy(split)
    assert split_batch_norms(split, repeats=repeats) is split
    images = torch.randn(8, 3, 32, 16, dtype=torch.float64)
    ours = split(images)
    for _ in range(repeats):
        theirs = torch.cat([plain(part) for part in images.chunk(2)])
    assert_close(ours, theirs)
    assert_close(split.state_dict(), plain.state_dict())
    cotangent = torch.randn_like(ours)
    gradients = (torch.autograd.grad(*pair, cotangent) for pair in
                 ((ours, [p for p in split.parameters() if p.requires_grad]),
                  (theirs, [p for p in plain.parameters() if p.requires_grad])))  # fmt: skip
    for one, two in zip(*gradients, strict=True):
        assert_close(one, two)


def test_converted_modules_keep_their_parameters():
    plain = network()
    before = dict(plain.named_parameters()) | dict(plain.named_buffers())
    split = split_batch_norms(plain.eval(), 3)
    after = dict(split.named_parameters()) | dict(split.named_buffers())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert isinstance(split[-1], SplitBatchNorm1d)
    assert split[-1].splits == 3
    assert not split[-1].bias.requires_grad
    assert not split[-1].training
