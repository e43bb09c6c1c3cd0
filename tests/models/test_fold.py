import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vifast.models import create, fold_norms
from vifast.nn import NonLocal


def moved(model):
    """Running statistics, scales and shifts that are no longer those of the start."""
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            for value, most in ((norm.bias, 0.5), (norm.running_mean, 0.5)):
                nn.init.uniform_(value, -most, most)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet18", "resnet50"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_folded_is_unfolded(name, layout):
    """dakd 14.8."""
    model = moved(create(name, width=8)).to(memory_format=layout)
    folded = fold_norms(copy.deepcopy(model))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    images = torch.randn(3, 3, 64, 32).contiguous(memory_format=layout)
    with torch.no_grad():
        expected, got = model(images), folded(images)
    assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert got.is_contiguous(memory_format=layout)


def test_other_modules_keep_their_norms():
    model = nn.ModuleDict({"trunk": create("resnet_tiny"), "non_local": NonLocal(8), "alone": nn.BatchNorm2d(3)})
    assert fold_norms(model) is model
    assert not model.training
    kept = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert kept == ["non_local.norm", "alone"]
