"""How an op enters PyTorch's dispatcher.

``torch.library.custom_op`` cost 164 us a forward and backward where the registration below cost 93 us (an empty op
with two outputs, 2-core Xeon): at N = 64 that difference is most of a product. Schema, fake, opcheck and torch.compile
are the same.
"""

import contextlib
import functools
from typing import ClassVar

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("vifast", "DEF")
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_forced = None


class Op:
    """``vifast::<name>``. The definition serves every device until a kernel replaces it, and always float64."""

    registered: ClassVar[list["Op"]] = []

    def __init__(self, name, reference):
        self.name = name
        self.kernels = {}  # by device type
        Op.registered.append(self)

        @functools.wraps(reference)
        def definition(*args):
            # Autocast would turn the definition's products into half precision.
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                return reference(*args)

        self.definition = definition
        _LIBRARY.define(name + torch.library.infer_schema(reference, mutates_args=()))
        _LIBRARY.impl(name, definition, "CompositeExplicitAutograd")
        self.overload = getattr(torch.ops.vifast, name).default

    def __call__(self, *args):
        return self.overload(*args)

    def register_fake(self, fake):
        torch.library.register_fake(f"vifast::{self.name}", fake, lib=_LIBRARY)
        return fake

    def register_kernel(self, device):
        def register(kernel):
            self.kernels[device] = kernel

            @functools.wraps(kernel)
            def dispatched(*args):
                for arg in args:
                    if isinstance(arg, Tensor) and arg.dtype == torch.float64:
                        return self.definition(*args)
                if _forced is not None:
                    return self.kernels.get(_forced, self.definition)(*args)
                return kernel(*args)

            _LIBRARY.impl(self.name, dispatched, _KEYS[device])
            return kernel

        return register

    def register_autograd(self, backward, setup_context):
        """``setup_context(ctx, inputs, output)`` and ``backward(ctx, *grads)`` as in ``torch.autograd.Function``."""
        overload = self.overload

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *args):
                with torch._C._AutoDispatchBelowAutograd():
                    output = overload(*args)
                ctx.set_materialize_grads(False)
                setup_context(ctx, args, output)
                return output

        Function.backward = staticmethod(backward)

        def differentiable(*args):
            if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
                return Function.apply(*args)
            with torch._C._AutoDispatchBelowAutograd():
                return overload(*args)

        _LIBRARY.impl(self.name, differentiable, "Autograd")


@contextlib.contextmanager
def forced(kernels):
    """Every op runs its ``"definition"``, or the kernels of one device type wherever its tensors are."""
    global _forced  # noqa: PLW0603 - one switch for the process, read on every call
    before, _forced = _forced, kernels
    try:
        yield
    finally:
        _forced = before


def check(condition, message):
    """ValueError with ``message()`` unless the condition holds; also while torch.compile traces with fake tensors."""
    if not condition:
        raise ValueError(message())
