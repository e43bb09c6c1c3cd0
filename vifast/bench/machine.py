"""The machine and the versions that a measurement is of."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

import vifast


def device_name(device: str) -> str:
    """Of the card, or of the processor with the number of threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()} x{torch.get_num_threads()}"
    return platform.machine()


def environment(device: str) -> dict[str, str | int | None]:
    """Names and versions, plain enough for JSON."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": triton_version,
        "python": platform.python_version(),
        "vifast": vifast.__version__,
    }
