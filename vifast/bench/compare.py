"""The ops on this machine, against their definitions in eager PyTorch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from vifast import _checks
from vifast.bench import CASES, Case
from vifast.bench.measure import interleaved, quantile

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDS = 25


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of every provider in one pass of an op at one size, taken in turn in one process."""

    op: str
    size: tuple[int, ...]
    part: str
    milliseconds: dict[str, float]

    def ratio(self, provider: str) -> float:
        """How many times as long as ours it takes."""
        return self.milliseconds[provider] / self.milliseconds["vifast"]


def choose(
    ops: Sequence[str], size: str | None = None, device: str | None = None
) -> tuple[list[tuple[Case, tuple[int, ...]]], str]:
    """Cases with their sizes, and the device; all ops without names, each at a size that is quick.

    Raises:
        ValueError: an unknown op, a size that does not fit an op, a device that is not there.
    """
    known = {case.op: case for case in CASES}
    for op in ops:
        if op not in known:
            nearest = difflib.get_close_matches(op, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"op: expected some of {', '.join(known)}; the nearest of {op!r} is {nearest!r}")
    cases = [known[op] for op in ops] or list(CASES)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _checks.one_of("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu, PyTorch finds no CUDA device")
    if size is None:
        return [(case, case.quick or case.sizes[0]) for case in cases], device
    numbers = tuple(int(number) if number.isdigit() else 0 for number in size.split("x"))
    for case in cases:
        if len(numbers) != len(case.sizes[0]) or 0 in numbers:
            raise ValueError(f"size: expected numbers as in {shown(case.sizes[0])} for {case.op}, got {size!r}")
    return [(case, numbers) for case in cases], device


def compare(
    case: Case,
    size: tuple[int, ...],
    *,
    device: str,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    parts: bool = False,
    seconds: float = 0.3,
) -> Iterator[Timing]:
    """Timings of one op: of forward and backward together, or with ``parts`` of each as well."""
    work = case.build(*size, device=device, dtype=dtype)
    rivals = {"eager": work.eager()} | ({"compile": work.eager(compiled=True)} if compiled else {})
    passes = work.passes(rivals)
    for part, providers in passes.items() if parts else list(passes.items())[:1]:
        times = interleaved(providers, ROUNDS, seconds)
        yield Timing(case.op, size, part, {name: 1e3 * quantile(values, 0.5) for name, values in times.items()})


def shown(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
