"""A gallery that does not fit into memory is searched, evaluated and changed from its file."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vifast.retrieval import Gallery

HERE = Path(__file__).parent  # not the root, whose bare package would hide an installed one
LIMITED = """
import resource, sys, torch
from vifast.retrieval import Gallery, evaluate, search
torch.set_num_threads(1)
gallery = Gallery.open(sys.argv[1])
query, ids = torch.randn(8, 64).to(gallery.features.dtype), torch.arange(8)
small = Gallery(gallery.features[:3000].clone(), gallery.ids[:3000])

def work(gallery):
    for metric in ("cosine", "euclidean", "dot"):
        gallery.search(query, 5, metric=metric)
        gallery.evaluate(query, ids, metric=metric)

work(small)
held = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
limit = held + 48 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
work(gallery)
gallery.verify()
gallery.add(query, ids)
gallery.remove(gallery.ids == 5)
print(len(gallery))
try:
    gallery.features.clone()
except RuntimeError:
    print("limited")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's own memory as Linux does")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gallery_larger_than_memory_is_streamed(tmp_path, dtype):
    count = 250_000 * 4 // dtype.itemsize
    file = tmp_path / "g.safetensors"
    Gallery(torch.randn(count, 64).to(dtype), torch.arange(count) % 1000).save(file)  # 61 MiB
    done = subprocess.run([sys.executable, "-c", LIMITED, file], cwd=HERE, capture_output=True, check=False, text=True)
    assert done.stdout.split() == [str(count + 8 - count // 1000 - 1), "limited"], done.stderr
