"""How an op enters PyTorch's dispatcher, and how a call goes past it where nothing would happen there.

A product of 64 rows takes 80 us, so dispatch counts. ``torch.library.custom_op`` cost 164 us a forward and backward
where the registration below cost 93 us (an empty op with two outputs, 2-core Xeon); plain tensors outside compilers,
modes and transforms go straight to the kernel. Schema, fake, opcheck and torch.compile are the same.
"""

import contextlib
import functools
import inspect
from typing import ClassVar

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("vifast", "DEF")
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_forced = None


class Op:
    """``vifast::<name>``. The definition serves every device until a kernel replaces it, and always float64.

    ``mutates`` names the arguments that it writes to; a backward that saved one of them before then complains.
    """

    registered: ClassVar[list["Op"]] = []

    def __init__(self, name, reference, mutates=()):
        self.name = name
        self.mutated = [
            place for place, argument in enumerate(inspect.signature(reference).parameters) if argument in mutates
        ]
        self.kernels = {}  # by device type
        self.function = None  # the torch.autograd.Function of a differentiable op
        Op.registered.append(self)

        @functools.wraps(reference)
        def definition(*args):
            # Autocast would turn the definition's products into half precision.
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                return reference(*args)

        self.definition = definition
        _LIBRARY.define(name + torch.library.infer_schema(reference, mutates_args=mutates))
        _LIBRARY.impl(name, definition, "CompositeExplicitAutograd")
        self.overload = getattr(torch.ops.vifast, name).default

    def __call__(self, *args):
        if _dispatcher_needed() or any(isinstance(a, Tensor) and not self._plain(a) for a in args):
            return self.overload(*args)
        if self.function is not None and torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, Tensor) and arg.requires_grad:
                    return self.function.apply(self.run, *args)
        return self.run(*args)

    def _plain(self, tensor):
        return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type in self.kernels

    def run(self, *args):
        """The kernel for the first tensor's device; the definition where there is none, or where that is float64.

        What a forward saves for a backward of float32 may itself be float64.
        """
        for place in self.mutated:
            if args[place] is not None:
                torch.autograd.graph.increment_version(args[place])
        first = next(arg for arg in args if isinstance(arg, Tensor))
        if first.dtype == torch.float64:
            return self.definition(*args)
        return self.kernels.get(_forced or first.device.type, self.definition)(*args)

    def register_fake(self, fake):
        torch.library.register_fake(f"vifast::{self.name}", fake, lib=_LIBRARY)
        return fake

    def register_kernel(self, device):
        def register(kernel):
            self.kernels[device] = kernel
            _LIBRARY.impl(self.name, self.run, _KEYS[device])
            return kernel

        return register

    def register_autograd(self, backward, setup_context):
        """``setup_context(ctx, inputs, output)`` and ``backward(ctx, *grads)`` as in ``torch.autograd.Function``."""

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, run, *args):
                with torch._C._AutoDispatchBelowAutograd():
                    output = run(*args)
                ctx.set_materialize_grads(False)
                setup_context(ctx, args, output)
                return output

            @staticmethod
            def backward(ctx, *grads):
                return None, *backward(ctx, *grads)

        self.function, overload = Function, self.overload

        def differentiable(*args):
            if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
                return Function.apply(overload, *args)
            with torch._C._AutoDispatchBelowAutograd():
                return overload(*args)

        _LIBRARY.impl(self.name, differentiable, "Autograd")


def _dispatcher_needed():
    """Somebody listens: a compiler, a mode (fake tensors, opcheck), a transform (vmap) or the profiler."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.autograd._profiler_enabled()
    )


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
