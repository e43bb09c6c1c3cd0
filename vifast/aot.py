"""Every Triton kernel compiled as its launcher launches it, for cards not at hand: ``python -m vifast.aot 80 90``.

A launcher is given tensors without memory, a stand-in driver names the card, and Triton compiles where it would launch.
Block sizes, warps and specialisations are therefore those of a real launch; nothing here repeats them. An op joins with
one entry in ``aot_launches``. Nothing else in the package imports this file.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from unittest import mock

import torch

import vifast.losses
import vifast.nn  # noqa: F401 - registers ops
from vifast.aot_launches import LAUNCHES
from vifast.kernels._registry import Op

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Compiled:
    """What one compiled kernel takes from its card."""

    kernel: str
    architecture: int
    warps: int
    registers: int  # a thread
    stack: int  # bytes a thread spills
    shared: int  # bytes a block
    product: bool  # whether the kernel multiplies matrices
    tensor_core: str  # the instruction it does so with, or ""


class _Card:
    """Stands where Triton expects a driver."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_device(self):
        return self.architecture  # Triton keeps compiled kernels by device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)

    def get_active_torch_device(self):
        return torch.device("meta")


def compile_all(architecture: int) -> list[Compiled]:
    """One entry per kernel that the launches compile, in their order."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    compiled = {}
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled[id(kernel)] = f"{self.fn.__module__.split('.')[-1]}.{self.fn.__name__}", kernel

    ops = {op.name: op for op in Op.registered}
    card = mock.patch.object(type(driver), "active", _Card(architecture))
    with card, mock.patch.object(JITFunction, "run", compile_only):
        for name, calls in LAUNCHES.items():
            for args in calls:
                ops[name].kernels["cuda"](*args)
    return [_inspect(name, architecture, kernel) for name, kernel in compiled.values()]


def _inspect(name: str, architecture: int, kernel) -> Compiled:
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [cuobjdump, "--dump-resource-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    instruction = re.search(r"\b(tcgen05\.mma|wgmma|mma\.sync)", kernel.asm["ptx"])
    return Compiled(
        kernel=name,
        architecture=architecture,
        warps=kernel.metadata.num_warps,
        registers=int(registers),
        stack=int(stack) + int(local),
        shared=kernel.metadata.shared,
        product="tt.dot" in kernel.asm["ttir"],
        tensor_core=instruction.group(1) if instruction else "",
    )


def main(architectures: list[str]) -> None:
    names = [field.name for field in fields(Compiled)]
    print("\t".join(names))
    for architecture in map(int, architectures or ARCHITECTURES):
        for row in compile_all(architecture):
            print("\t".join(str(getattr(row, name)) for name in names), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
