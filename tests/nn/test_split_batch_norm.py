import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vifast.nn import SplitBatchNorm2d


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
    with pytest.raises(ValueError, match=r"^input: expected a multiple of 2 images, got shape \[3, 4, 2, 2\]$"):
        SplitBatchNorm2d(4)(torch.zeros(3, 4, 2, 2))
    SplitBatchNorm2d(4).eval()(torch.zeros(3, 4, 2, 2))
