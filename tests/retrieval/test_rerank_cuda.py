"""Re-ranking on a GPU: the kernels where there is a card, and everywhere the Python side with the kernels' contract."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vifast.kernels import _C
from vifast.retrieval import _distances, _rerank, rerank, rerank_cuda

METRICS = ("sqeuclidean", "euclidean", "cosine")


def cases(seed):
    rng = np.random.default_rng(seed)
    for case in range(12):
        q, g = int(rng.integers(1, 40)), int(rng.integers(1, 90))
        rows = torch.from_numpy(rng.standard_normal((q + g, int(rng.integers(2, 9)))))
        if case % 3 == 0:
            rows = rows[torch.from_numpy(rng.integers(0, max(1, (q + g) // 3), q + g))]
        settings = {
            "k1": int(rng.integers(1, 26)),
            "k2": int(rng.integers(1, 9)),
            "lambda_": float(rng.random()),
            "queries_only": bool(rng.integers(2)),
        }
        yield rows.to([torch.float32, torch.float64, torch.float16][case % 3]), q, g, settings


def reciprocal(lists, width, members, count, stream):
    assert stream == 17
    _C.rerank_reciprocal(lists.contiguous(), width, members, count, 1)


def joins(wide, wide_count, narrow, narrow_count, out, stream):
    """What csrc/rerank_cuda.h promises."""
    assert stream == 17
    out[:] = False
    for i in range(len(out)):
        base = wide[i, : wide_count[i]].tolist()
        for k, member in enumerate(base):
            own = narrow[member, : narrow_count[member]].tolist()
            out[i, k] = 3 * len(set(own) & set(base)) > 2 * len(own)


def jaccard(begin, column, value, by_column, row, held, most, part, original, dist, stream):
    assert stream == 17
    assert begin.is_contiguous()
    for r in range(len(dist)):
        sums = torch.zeros(dist.size(1))
        for e in range(begin[r], begin[r + 1]):
            own = slice(by_column[column[e]], by_column[column[e] + 1])
            assert row[own].diff().gt(0).all()
            sums[row[own].long()] += held[own].minimum(value[e])
        share = dist[r] / most[r] if most[r] > 0 else torch.zeros_like(dist[r])
        dist[r] = part * (1 - sums / (2 - sums)) + original * share


@pytest.fixture
def on_cpu(monkeypatch):
    kernels = SimpleNamespace(rerank_reciprocal=reciprocal, rerank_joins=joins, rerank_jaccard=jaccard)
    monkeypatch.setattr(rerank_cuda, "_CUDA", kernels)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=17))

    def call(query, gallery, metric, settings, topk=None):
        source = rerank_cuda.DeviceFeatures(query, gallery, metric)
        return rerank_cuda.k_reciprocal_cuda(source, _rerank.Settings(**settings, half=False), topk)

    return call


@pytest.mark.parametrize("metric", METRICS)
def test_python_side(on_cpu, metric, monkeypatch):
    monkeypatch.setattr(rerank_cuda, "TILE", 40000)
    for rows, q, g, settings in cases(METRICS.index(metric)):
        query, gallery = rows[:q], rows[q:]
        expected = rerank(query, gallery, metric=metric, **settings)
        result = on_cpu(query, gallery, metric, settings)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, atol=2e-6, rtol=0)
        k = min(g, 5)
        value, index = on_cpu(query, gallery, metric, settings, k)
        order = result.sort(dim=1, stable=True)
        assert torch.equal(value, order.values[:, :k])
        assert torch.equal(index, order.indices[:, :k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_origin_is_that_of_the_cpu(dtype):
    query, gallery = (torch.randn(n, 6).to(dtype) + 3 for n in (300, 500))
    origin = rerank_cuda.DeviceFeatures(query, gallery, "euclidean").origin
    keyed = _distances.Keyed(query.to(torch.promote_types(dtype, torch.float32)), "euclidean")
    assert torch.equal(origin, (keyed.origin if keyed.shift is None else keyed.shift).double())


@pytest.mark.skipif(rerank_cuda._CUDA is None, reason="built without nvcc")
def test_binding_wants_device_memory():
    lists, count = torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="lists: expected a tensor on a CUDA device"):
        rerank_cuda._CUDA.rerank_reciprocal(lists, 2, lists, count, 0)
    with pytest.raises(ValueError, match="wide: expected a tensor on a CUDA device"):
        rerank_cuda._CUDA.rerank_joins(lists, count, lists, count, lists.bool(), 0)
    dist, begin = torch.ones(1, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="dist: expected a tensor on a CUDA device"):
        rerank_cuda._CUDA.rerank_jaccard(begin, count, dist, begin, count, dist, dist, 0.7, 0.3, dist, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("metric", METRICS)
def test_gpu_equals_cpu(monkeypatch, metric, built):
    if built and rerank_cuda._CUDA is None:
        pytest.skip("vifast.kernels._CUDA is not built")
    if not built:
        monkeypatch.setattr(rerank_cuda, "_CUDA", None)
    for rows, q, g, settings in cases(10 + METRICS.index(metric)):
        query, gallery = rows[:q], rows[q:]
        expected = rerank(query, gallery, metric=metric, **settings)
        result = rerank(query.cuda(), gallery.cuda(), metric=metric, **settings)
        assert result.device.type == "cuda"
        torch.testing.assert_close(result.cpu(), expected, atol=2e-6, rtol=0)
        for a, b in zip(
            rerank(query.cuda(), gallery.cuda(), metric=metric, topk=min(g, 5), **settings),
            result.sort(dim=1, stable=True),
            strict=True,
        ):
            assert torch.equal(a, b[:, : min(g, 5)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("queries_only", [False, True])
def test_gpu_of_many_rows(queries_only):
    """More gallery rows than a chunk of the kernel holds, more columns than it looks up together."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(60, 32, generator=generator)
    rows = centers[torch.arange(9500) % 60] + 0.6 * torch.randn(9500, 32, generator=generator)
    query, gallery = rows[:500], rows[500:]
    arguments = {"k1": 60, "k2": 12, "queries_only": queries_only}
    expected = rerank(query, gallery, **arguments)
    result = rerank(query.cuda(), gallery.cuda(), **arguments)
    torch.testing.assert_close(result.cpu(), expected, atol=2e-6, rtol=0)
    assert torch.equal(rerank(query.cuda(), gallery.cuda(), **arguments), result)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("option", [{"precision": "reference"}, {"method": "gnn"}])
def test_what_the_cpu_does_comes_back(option):
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    result = rerank(rows[:20].cuda(), rows[20:].cuda(), **option)
    assert result.device.type == "cuda"
    assert torch.equal(result.cpu(), rerank(rows[:20], rows[20:], **option))
