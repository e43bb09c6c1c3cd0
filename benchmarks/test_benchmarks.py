"""The same cases under pytest-benchmark, for its histories and comparisons: ``pytest benchmarks --benchmark-only``.

Sizes are those of the smoke run unless ``VIFAST_BENCH_FULL`` is set.
"""

import os

import pytest
import torch
from cases import CASES, smoke_size

from vifast.bench import PASSES
from vifast.bench.measure import prepare

FULL = bool(os.environ.get("VIFAST_BENCH_FULL"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PARAMETERS = [
    pytest.param(case, size if FULL else smoke_size(size), id=f"{case.op}-{'x'.join(map(str, size))}")
    for case in CASES
    for size in case.sizes_on(DEVICE)
]


@pytest.mark.parametrize("provider", ["floor", "vifast"])
@pytest.mark.parametrize("part", PASSES)
@pytest.mark.parametrize(("case", "size"), PARAMETERS)
def test_speed(benchmark, case, size, part, provider):
    passes = case.passes(*size, device=DEVICE)
    if part not in passes:
        pytest.skip("no gradient")
    run = passes[part][provider]
    benchmark.group = f"{case.op} {size} {part}"
    benchmark.pedantic(run, setup=lambda: prepare(run), rounds=5, warmup_rounds=1)
