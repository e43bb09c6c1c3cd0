"""What of vifast works on this machine, and what each missing part would give."""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vifast.data import dali
from vifast.train.provenance import git_commit, versions

_USES = {
    "triton": "GPU kernels; part of torch's CUDA builds on Linux",
    "nvidia-dali-cuda130": f"faster image decoding; {dali.INSTALL}",
}
_TRAIN = 'training, report and command line; pip install "vifast[train]"'


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; ``note`` says what the part is for, or why it is missing."""

    part: str
    present: bool
    state: str
    note: str = ""


def diagnose() -> list[Finding]:
    """Findings about the platform, the back ends and the packages; raises nothing."""
    return [*_platform(), *_back_ends(), _decoder(), *_packages()]


def _platform() -> Iterator[Finding]:
    yield Finding("platform", True, f"{platform.system()} {platform.machine()}, {platform.python_version()}")
    if (commit := git_commit()) is not None:
        yield Finding("commit", True, commit[:12], "dirty" if commit.endswith("-dirty") else "")
    yield Finding("CPU threads", True, str(torch.get_num_threads()))
    if not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no device"
        yield Finding("GPU", False, "", f"{why}; everything runs on the CPU")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        state = f"{properties.name}, sm_{properties.major}{properties.minor}"
        yield Finding(f"GPU {index}", True, state, f"{properties.total_memory / 2**30:.0f} GiB")
    yield _compiler()


def _compiler() -> Finding:
    path = shutil.which("nvcc")
    if path is None:
        return Finding("nvcc", False, "", "not on PATH; only needed to build the CUDA extension")
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("nvcc", False, "", f"{path} does not run ({error})")
    release = next((line.strip() for line in text.splitlines() if "release" in line), "")
    return Finding("nvcc", True, release.partition("release ")[2], path)


def _back_ends() -> Iterator[Finding]:
    for name, what in (("_C", "C++ for the CPU"), ("_CUDA", "CUDA extension")):
        try:
            module = importlib.import_module(f"vifast.kernels.{name}")
        except ImportError as error:
            yield Finding(what, False, "", f"not built ({error})")
        else:
            state = f"instruction set {module.isa()}" if name == "_C" else ""
            yield Finding(what, True, state, f"vifast.kernels.{name}")


def _decoder() -> Finding:
    if (missing := dali.why_missing()) is not None:
        return Finding("image decoder", True, "Pillow on the CPU", missing)
    return Finding("image decoder", True, f"DALI on the {'GPU' if torch.cuda.is_available() else 'CPU'}")


def _packages() -> Iterator[Finding]:
    for name, version in versions().items():
        if version is not None:
            yield Finding(name, True, version)
        else:
            yield Finding(name, False, "", _USES.get(name, _TRAIN))
