"""What nvcc made of csrc/cuda, read from the extension itself: no GPU is needed."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest


def find_cuobjdump():
    """CUDA's, or the one that Triton brings."""
    triton = importlib.util.find_spec("triton")
    bundled = triton and Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return shutil.which("cuobjdump") or (str(bundled) if bundled and bundled.exists() else None)


@pytest.fixture(scope="module")
def extension():
    spec = importlib.util.find_spec("vifast.kernels._CUDA")
    if spec is None:
        pytest.skip("built without nvcc: there is no _CUDA")
    return spec.origin


@pytest.fixture(scope="module")
def usage(extension):
    """Resource lines of the kernels by architecture."""
    if find_cuobjdump() is None:
        pytest.skip("no cuobjdump, neither CUDA's nor Triton's")
    command = [find_cuobjdump(), "--dump-resource-usage", extension]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sections = re.split(r"^arch = sm_(\w+)$", text, flags=re.MULTILINE)[1:]
    return {arch: re.findall(r"REG:\d+.*", body) for arch, body in zip(sections[::2], sections[1::2], strict=True)}


def test_no_kernel_spills_or_uses_local_memory(usage):
    for arch, kernels in usage.items():
        assert kernels, f"sm_{arch} has no kernel"
        for kernel in kernels:
            assert "STACK:0 " in kernel, f"sm_{arch}: {kernel}"
            assert "LOCAL:0 " in kernel, f"sm_{arch}: {kernel}"


@pytest.mark.skipif("VIFAST_CUDA_ARCHS" in os.environ, reason="other architectures were asked for")
def test_every_architecture_is_there(usage):
    assert {"80", "90", "100"} <= set(usage)


def test_no_cuda_release_is_linked(extension):
    linked = subprocess.run(["ldd", extension], capture_output=True, text=True, check=True).stdout
    assert not any(name in linked for name in ("libcudart", "libcuda.so", "torch", "not found"))
