"""Search on a GPU: the kernels where there is a card, and everywhere the Python side with the kernels' contract."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vifast.retrieval import search, search_cuda
from vifast.retrieval.search import distances

METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")
BLOCK = 256


def cases(seed):
    rng = np.random.default_rng(seed)
    for case in range(16):
        q, g, d = int(rng.integers(1, 9)), int(rng.integers(1, 1500 if case % 2 else 20)), int(rng.integers(1, 70))
        query, gallery = (torch.from_numpy(rng.standard_normal((n, d))).float() for n in (q, g))
        if case % 3 == 0:
            gallery = gallery[torch.from_numpy(rng.integers(0, max(1, g // 10), g))]
        if case % 4 == 0:
            gallery[torch.from_numpy(rng.random(g) < 0.3)] = 0
        mask = torch.from_numpy(rng.random((q, g)) < 0.4) if case % 5 else None
        yield query, gallery, int(rng.integers(1, g + 1)), mask


def fold(
    tile,
    first,
    metric,
    query,
    query_norm,
    query_lost,
    gallery,
    norm,
    lost,
    exclude,
    k,
    key,
    index,
    count,
    settled,
    stream,
):
    """What csrc/topk_cuda.h promises: the best k so far stay candidates."""
    assert stream == 17
    assert key.size(1) >= k + BLOCK
    assert (query_lost / query_norm).nan_to_num(0.01).ge(2.0**-11).all()
    exact = exact_keys(metric, query, gallery[first : first + tile.size(1)])
    factor = {"cosine": 1 / norm, "dot": torch.ones_like(norm), "sqeuclidean": 2 * torch.ones_like(norm)}[metric]
    size = {"cosine": query_norm[:, None] * torch.ones_like(norm), "dot": query_norm[:, None] * norm}
    scale = size.get(metric, query_norm[:, None] ** 2 + norm**2)
    offset = {"cosine": torch.ones_like(scale), "dot": torch.zeros_like(scale)}.get(metric, scale)
    held = norm >= 1e-30
    assert ((offset - factor * tile.double() - exact).abs() <= 1e-5 * scale + 1e-12)[:, held].all()
    for q, row in enumerate(exact):
        kept = count[q]
        wanted = [(float(row[c]), first + c) for c in range(len(row)) if exclude is None or not exclude[q, c]]
        both = sorted([*zip(key[q, :kept].tolist(), index[q, :kept].tolist(), strict=True), *wanted])[:k]
        count[q] = settled[q] = len(both)
        for i, (value, at) in enumerate(both):
            key[q, i], index[q, i] = value, at


def finish(metric, query, gallery, k, key, index, count, settled, stream):
    assert (count <= k).all()


def exact_keys(metric, query, gallery):
    query, gallery = query.double(), gallery.double()
    if metric == "sqeuclidean":
        return (query[:, None] - gallery).square().sum(2)
    dot = (query[:, None] * gallery).sum(2)
    if metric == "dot":
        return -dot
    norms = (query.square().sum(1, keepdim=True) * gallery.square().sum(1)).sqrt()
    return 1 - torch.where(norms > 0, dot / norms, 0.0).clamp(-1, 1)


@pytest.mark.parametrize("metric", METRICS)
def test_python_side(monkeypatch, metric):
    module = search_cuda
    kernels = {f"topk_{name}_float32": f for name, f in (("fold", fold), ("finish", finish))}
    monkeypatch.setattr(module, "_CUDA", SimpleNamespace(TOPK_BLOCK=BLOCK, **kernels))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=17))
    monkeypatch.setattr(module, "MOST_QUERIES", 3)
    for query, gallery, k, mask in cases(METRICS.index(metric)):
        blocks = lambda a, b, c, d, mask=mask: None if mask is None else mask[a:b, c:d]  # noqa: E731
        keys, index = module.search_cuda(query, gallery, k, metric, blocks, 128)
        dist = distances(keys, metric, query.dtype)
        expected = search(query, gallery, k, metric=metric, exclude=mask)
        torch.testing.assert_close(dist, expected[0], rtol=1e-5, atol=1e-6)
        same = (index == expected[1]) | (dist == expected[0])
        assert same.all()


def test_only_where_it_can():
    assert not search_cuda.can_search_cuda(torch.ones(1, 1), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or search_cuda._CUDA is None, reason="needs a GPU and the extension")
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_gpu_has_the_bits_of_the_cpu(metric, dtype, precision):
    torch.set_float32_matmul_precision(precision)
    try:
        for query, gallery, k, mask in cases([METRICS.index(metric), 1]):
            rows = query.to(dtype), gallery.to(dtype)
            expected = search(*rows, k, metric=metric, exclude=mask)
            for chunk in (None, 100):
                on_card = None if mask is None else mask.cuda()
                dist, index = search(*(x.cuda() for x in rows), k, metric=metric, exclude=on_card, chunk=chunk)
                assert torch.equal(dist.cpu(), expected[0])
                assert torch.equal(index.cpu(), expected[1])
    finally:
        torch.set_float32_matmul_precision("highest")
