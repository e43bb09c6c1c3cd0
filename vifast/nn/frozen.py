"""A module that only answers."""

from torch import nn


def frozen(module: nn.Module) -> nn.Module:
    """The module itself in evaluation mode, its tensors in buffers that no state dict holds.

    It moves with the module that owns it, but has no parameters to train, to count or to save: a teacher.

    >>> student = nn.ModuleList([nn.Linear(2, 2), frozen(nn.Linear(2, 2))])
    >>> sorted(student.state_dict()), sum(p.numel() for p in student.parameters())
    (['0.bias', '0.weight'], 6)
    """
    for part in module.modules():
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        for name, tensor in tensors:
            delattr(part, name)
            part.register_buffer(name, tensor.detach(), persistent=False)
    return module.eval()
