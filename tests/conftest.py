import contextlib
import importlib.util
import os
import sys
import tempfile
from types import SimpleNamespace

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


@pytest.fixture(
    params=["cpu", pytest.param("triton", marks=pytest.mark.triton), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def backend(request):
    """One test, three back ends: C++ on the CPU, the Triton launchers in the interpreter, and a GPU."""
    context = forced("cuda") if request.param == "triton" else contextlib.nullcontext()
    with context:
        yield SimpleNamespace(name=request.param, device="cuda" if request.param == "cuda" else "cpu")


@pytest.fixture
def with_threads():
    """A function that sets the number of CPU threads, which is restored after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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
