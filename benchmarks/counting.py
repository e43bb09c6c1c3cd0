"""What a piece of code asks of PyTorch's dispatcher."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal")
_BY_MASK = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Dispatches(TorchDispatchMode):
    """Counts ops, a fused one once, and among them those whose result the host must wait for on a card."""

    def __init__(self):
        super().__init__()
        self.count = self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        by_mask = name in _BY_MASK and any(x is not None and x.dtype == torch.bool for x in args[1])
        self.count += 1
        self.reads += name in _READS or by_mask
        return func(*args, **(kwargs or {}))
