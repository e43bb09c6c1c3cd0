"""The same cases under pytest-benchmark, for its histories and comparisons: ``pytest benchmarks --benchmark-only``.

Sizes are those of the smoke run unless ``VIFAST_BENCH_FULL`` is set.
"""

import os

import pytest
import torch
from cases import CASES, smoke_size

FULL = bool(os.environ.get("VIFAST_BENCH_FULL"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PARAMETERS = [
    pytest.param(case, size if FULL else smoke_size(size), id=f"{case.op}-{'x'.join(map(str, size))}")
    for case in CASES
    for size in case.sizes
    if case.gpu or DEVICE == "cpu"
]


@pytest.mark.parametrize("provider", ["floor", "vifast"])
@pytest.mark.parametrize(("case", "size"), PARAMETERS)
def test_speed(benchmark, case, size, provider):
    run = case.build(*size, device=DEVICE)[provider]
    benchmark.group = f"{case.op} {size}"
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
