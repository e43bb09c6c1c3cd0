"""Gradients of maps ask for huge pages, where the system gives them to those who ask."""

import re
from pathlib import Path

import pytest
import torch

from vifast import functional as F
from vifast.kernels import _C

OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def asked(tensor):
    """Whether the middle of a tensor lies in memory that is marked for huge pages."""
    at = tensor.data_ptr() + tensor.nbytes // 2
    for area in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)[1:]:
        begin, end = (int(x, 16) for x in area.split()[0].split("-"))
        if begin <= at < end:
            return " hg" in re.search(r"^VmFlags:.*", area, re.MULTILINE)[0]
    raise AssertionError("not mapped")


@pytest.mark.skipif(not OFFERED.exists() or "[never]" in OFFERED.read_text(), reason="no huge pages here")
def test_gradient_of_a_map_asks_for_huge_pages():
    x = torch.rand(40, 1024, 24, 9).requires_grad_()  # above any threshold below which memory is kept for reuse
    (grad,) = torch.autograd.grad(F.gem_pool(x).sum(), x)
    assert asked(grad)
    assert not asked(torch.empty(40, 1024, 24, 9).fill_(0))


@pytest.mark.parametrize("size", [0, 1, 1000, 3 << 20])
def test_memory_keeps_its_values(size):
    memory = torch.arange(size, dtype=torch.float32)
    _C.prefer_huge_pages(memory)
    assert torch.equal(memory, torch.arange(size, dtype=torch.float32))


def test_memory_is_checked():
    with pytest.raises(TypeError, match="memory"):
        _C.prefer_huge_pages(torch.zeros(3, dtype=torch.int64))
