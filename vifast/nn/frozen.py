"""A module that only answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Frozen(nn.Module):
    """Holds a module that is trained no more, a teacher: it stays in evaluation mode and has no gradients.

    It moves with the module that owns it, but nothing of it is among that one's parameters, buffers and state: so it is
    neither saved nor sent to other processes.

    Args:
        module: it is changed. ``forward`` calls it without gradient, ``module`` gives it as it is.

    >>> student = nn.ModuleList([nn.Linear(2, 2), Frozen(nn.Linear(2, 2))])
    >>> sorted(student.state_dict()), student.train()[1].module.training
    (['0.bias', '0.weight'], False)
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        object.__setattr__(self, "module", module.eval().requires_grad_(False))  # past nn.Module, which would own it

    def forward(self, *inputs, **options):
        with torch.no_grad():  # not in inference mode: an objective may keep the answer for its backward
            return self.module(*inputs, **options)

    def _apply(self, fn: Callable, recurse: bool = True) -> Frozen:
        self.module._apply(fn, recurse)
        return super()._apply(fn, recurse)
