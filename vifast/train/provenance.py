"""What a result depends on besides its configuration: versions, platform, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import vifast

#: Distributions that vifast works with; those of the extras may be absent.
PACKAGES = (
    "torch",
    "numpy",
    "triton",
    "accelerate",
    "safetensors",
    "pydantic",
    "pyyaml",
    "pillow",
    "rich",
    "typer",
    "jinja2",
    "matplotlib",
    "tensorboard",
    "nvidia-dali-cuda130",
)


def versions() -> dict[str, str | None]:
    """Version of Python, vifast and each of `PACKAGES`; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "vifast": vifast.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """Commit of the checkout that vifast runs from, ``-dirty`` where files differ; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
