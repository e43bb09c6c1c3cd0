"""Normalisation that no longer moves, folded into the convolutions before it."""

from itertools import pairwise

from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from vifast.models.resnet import ResNet, _Block


def fold_norms(model: nn.Module) -> nn.Module:
    """``model`` itself in evaluation mode, the batch normalisations of every `ResNet` in it part of its convolutions.

    A fold computes the same up to rounding and reads no map a second time; it is for a network that is not trained any
    more, and changes its state dict.

    Source: spec dakd H6.

    >>> from vifast.models import create
    >>> [name for name in fold_norms(create("resnet_tiny", last=0)).state_dict()]
    ['conv1.weight', 'conv1.bias']
    """
    for module in model.eval().modules():
        if isinstance(module, (ResNet, _Block, nn.Sequential)):
            for (name, conv), (after, norm) in pairwise(list(module.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(module, name, fuse_conv_bn_eval(conv, norm))
                    setattr(module, after, nn.Identity().eval())
    return model
