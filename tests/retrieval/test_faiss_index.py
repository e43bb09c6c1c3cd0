import math
import sys

import numpy as np
import pytest
import torch

from vifast.retrieval import Gallery, faiss_index, from_faiss, search, search_faiss, to_faiss

faiss = pytest.importorskip("faiss")
METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")


@pytest.fixture
def rows():
    query, gallery = torch.randn(20, 12), torch.randn(300, 12)
    gallery[7] = 0
    return query, gallery


@pytest.mark.parametrize("metric", METRICS)
def test_a_flat_index_answers_as_search_does(rows, metric):
    query, gallery = rows
    for features in (gallery, gallery.numpy(), Gallery(gallery), gallery.double()):
        index = to_faiss(features, metric=metric)
        dist, found = search_faiss(index, query, 9, metric=metric)
        expected = search(query, gallery, 9, metric=metric)
        assert torch.equal(found, expected[1])
        assert (dist.dtype, found.dtype) == (torch.float32, torch.int64)
        torch.testing.assert_close(dist, expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factory", ["HNSW16", "IVF8,Flat", "IVF8,PQ4x4", "PCA6,Flat"])
@pytest.mark.parametrize("metric", METRICS)
def test_other_indexes_find_most(rows, metric, factory, monkeypatch):
    monkeypatch.setattr(faiss_index, "ROWS", 77)
    query, gallery = rows
    index = to_faiss(gallery, metric=metric, factory=factory, train_rows=250)
    assert index.ntotal == 300
    if "IVF" in factory:
        index.nprobe = 8
    found = search_faiss(index, query, 20, metric=metric)[1]
    exact = search(query, gallery, 20, metric=metric)[1]
    shared = (found[:, :, None] == exact[:, None]).any(2).double().mean()
    assert shared > (0.95 if factory in ("HNSW16", "IVF8,Flat") else 0.3)  # by chance 0.07


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat"])
def test_back_from_faiss(rows, factory, monkeypatch):
    monkeypatch.setattr(faiss_index, "ROWS", 77)
    gallery = rows[1]
    for metric in METRICS:
        told = "dot" if metric in ("cosine", "dot") else "sqeuclidean"
        features, kind = from_faiss(to_faiss(gallery, metric=metric, factory=factory))
        assert kind == told
        expected = torch.nn.functional.normalize(gallery) if metric == "cosine" else gallery
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-6 if metric == "cosine" else 0)


def test_fewer_than_asked_for(rows):
    for metric in METRICS:
        dist, found = search_faiss(to_faiss(rows[1][:2], metric=metric), rows[0], 3, metric=metric)
        assert found[:, 2].tolist() == [-1] * 20
        assert dist[:, 2].tolist() == [-math.inf if metric == "dot" else math.inf] * 20


def test_distances_are_never_negative():
    row = torch.full((1, 3), 1 / 3)
    for metric in ("cosine", "euclidean"):
        assert search_faiss(to_faiss(row, metric=metric), row * 3, 1, metric=metric)[0].item() >= 0


def flat(code=faiss.METRIC_L2):
    index = faiss.IndexFlat(2, code)
    index.add(np.ones((1, 2), np.float32))
    return index


def numbered():
    index = faiss.IndexIDMap(faiss.IndexFlatL2(2))
    index.add_with_ids(np.ones((1, 2), np.float32), np.array([5]))
    return index


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: to_faiss([1.0]), TypeError, "gallery: expected a tensor"),
        (lambda: to_faiss(torch.ones(0, 2)), ValueError, "gallery: expected at least one row"),
        (lambda: to_faiss(torch.ones(2, 2) * torch.nan), ValueError, "gallery: row 0 is not finite"),
        (lambda: to_faiss(torch.ones(2, 2), metric="l2"), ValueError, "metric: expected one of cosine"),
        (lambda: to_faiss(torch.ones(2, 2), train_rows=0), ValueError, "train_rows: expected at least 1"),
        (lambda: to_faiss(torch.ones(2, 2), factory="Flot"), ValueError, "factory: 'Flot' does not make an index"),
        (lambda: to_faiss(torch.ones(2, 2), factory="IVF8,Flat"), ValueError, "factory: 'IVF8,Flat' does not make"),
        (lambda: to_faiss(torch.ones(2, 2), factory=3), ValueError, "factory: 3 does not make an index"),
        (lambda: from_faiss(torch.ones(2, 2)), TypeError, "index: expected a faiss index, got Tensor"),
        (lambda: from_faiss(faiss.IndexFlatL2(2)), ValueError, "index: expected at least one row"),
        (lambda: from_faiss(flat(faiss.METRIC_L1)), ValueError, "index: expected inner products or squared"),
        (lambda: from_faiss(numbered()), ValueError, "index: IndexIDMap cannot rebuild its rows"),
        (
            lambda: search_faiss(flat(), torch.ones(1, 2), 1),
            ValueError,
            "metric: expected one of an index of distances",
        ),
        (lambda: search_faiss(flat(), torch.ones(1, 2), 1, metric="l1"), ValueError, "metric: expected one of cosine"),
        (
            lambda: search_faiss(flat(), torch.ones(1, 3), 1, metric="euclidean"),
            ValueError,
            "query: expected 2 columns",
        ),
        (lambda: search_faiss(flat(), torch.ones(1, 2), 0, metric="euclidean"), ValueError, "k: expected at least 1"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (lambda: to_faiss(torch.eye(2)), lambda: from_faiss(None), lambda: search_faiss(None, torch.eye(2), 1)):
        with pytest.raises(ImportError, match=r"faiss is not installed: pip install 'vifast\[faiss\]'"):
            call()
