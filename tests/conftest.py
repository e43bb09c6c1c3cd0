import contextlib
import importlib.util
import os
import sys
import tempfile
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.10 changes the default; numbers must not move with it
# PyTorch's cache of compiled graphs does not notice that an op changed, so every run begins with an empty one.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="vifast-inductor-"))

from vifast.kernels import _C
from vifast.kernels._registry import forced

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("triton") and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="run TRITON_INTERPRET=1 pytest -m triton (needs triton)"))


@pytest.fixture(autouse=True)
def _repeatable():
    """A seed for every test, and memory that PyTorch fills with NaN when it is allocated: an unwritten output shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def rounding_of_a_gpu():
    """One rounding, to nearest even, where the interpreter cuts (to bfloat16) or rounds twice (fma, before 3.9)."""
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def nearest(data, source, target, mode):
        if (str(source), str(target)) != ("fp32", "bf16"):
            return convert(data, source, target, mode)
        return torch.from_numpy(np.array(data, ndmin=1)).bfloat16().view(torch.uint16).numpy().reshape(data.shape)

    def fma(builder, x, y, z):  # exact in float64 for what the kernels multiply and add
        total = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return interpreter.TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(interpreter, "_convert_float", nearest))
        if not hasattr(interpreter._interpreter, "fma_fp32"):
            stack.enter_context(mock.patch.object(interpreter.InterpreterBuilder, "create_fma", fma))
        yield


@pytest.fixture(
    params=["cpu", pytest.param("triton", marks=pytest.mark.triton), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def backend(request):
    """One test, three back ends: C++ on the CPU, the Triton launchers in the interpreter, and a GPU."""
    with contextlib.ExitStack() as stack:
        if request.param == "triton":
            stack.enter_context(forced("cuda"))
            stack.enter_context(rounding_of_a_gpu())
        yield SimpleNamespace(name=request.param, device="cuda" if request.param == "cuda" else "cpu")


@pytest.fixture
def with_threads():
    """A function that sets the number of CPU threads, which is restored after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def no_host_reads(monkeypatch):
    """Whatever reads from the device fails: on a GPU the host would wait there until the device is done."""

    def refuse(*args, **kwargs):
        raise AssertionError("an op reads from the device")

    for name in ("item", "tolist", "numpy", "nonzero", "cpu", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for name in ("nonzero", "unique", "masked_select"):
        monkeypatch.setattr(torch, name, refuse)


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request):
    """Every instruction set that this processor has."""
    before = _C.isa()
    if not _C.set_isa(request.param):
        pytest.skip(f"the processor has no {request.param}")
    yield request.param
    _C.set_isa(before)


@pytest.fixture
def vifast(monkeypatch, capsys):
    """Runs the command line in this process: (status, stdout, stderr)."""
    from vifast import cli

    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vifast", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capsys.readouterr()

    return run
