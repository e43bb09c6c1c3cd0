import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rerank_oracle as oracle
import torch

from vifast.kernels import _C
from vifast.retrieval import _distances, _rerank, rerank, rerank_distance
from vifast.retrieval.drop_in import re_ranking

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_rerank.npz"
CASES = int(os.environ.get("VIFAST_FUZZ", "300"))


def golden(case):
    with np.load(GOLDEN) as file:
        query, gallery, settings, dist = (file[f"{case}__{name}"] for name in ("q", "g", "k1_k2_lambda_masked", "dist"))
    k1, k2, lam, masked = settings.tolist()
    return query, gallery, {"k1": int(k1), "k2": int(k2), "lambda_": lam, "queries_only": bool(masked)}, dist


def nearest(dist, k):
    """What ``topk`` must give: a stable sort of the whole matrix."""
    order = np.argsort(dist, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(dist, order, 1), order


def clusters(q, g, d, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(max(1, (q + g) // 8), d, generator=generator)
    rows = centers[torch.randint(0, len(centers), (q + g,), generator=generator)]
    rows = (rows + 0.5 * torch.randn(q + g, d, generator=generator)).to(dtype)
    return rows[:q], rows[q:]


@pytest.mark.parametrize("case", "abcde")
def test_golden_bit_for_bit(case):
    query, gallery, settings, dist = golden(case)
    np.testing.assert_array_equal(rerank(query, gallery, precision="reference", **settings), dist)
    settings["lambda_value"] = settings.pop("lambda_")
    np.testing.assert_array_equal(re_ranking(query, gallery, **settings), dist)


@pytest.mark.parametrize("case", "abcde")
def test_golden_without_the_rounding(case):
    query, gallery, settings, dist = golden(case)
    result = rerank(query, gallery, **settings)
    np.testing.assert_allclose(
        result, dist, atol=4e-3, rtol=0
    )  # the published numbers are rounded to 11 bits on the way
    matrix = oracle.squared_distances(np.concatenate([query, gallery]))
    k1, k2, lam, masked = settings.values()
    np.testing.assert_allclose(result, oracle.rerank(matrix, len(query), k1, k2, lam, masked), atol=1e-6, rtol=0)


def draw(case):
    """Rows with many ties: few lattice points, few distinct rows, generic ones; or a matrix that is not symmetric."""
    rng = np.random.default_rng(case)
    q, g = int(rng.integers(1, 16)), int(rng.integers(1, 30)) if case % 5 else 1
    kind = ("lattice", "copies", "generic", "matrix")[case % 4]
    rows = rng.standard_normal((q + g, 4)).astype(np.float32)
    if kind == "lattice":
        rows = rng.integers(-2, 3, (q + g, int(rng.integers(1, 4)))).astype(np.float32)
    elif kind == "copies":
        rows = rows[rng.integers(0, max(1, (q + g) // 3), q + g)]
    dist = ((rows[:, None] - rows[None]) ** 2).sum(2).astype(np.float32)
    if kind == "matrix":
        rows, dist = None, rng.integers(0, 6, dist.shape).astype(np.float32)
    settings = {
        "k1": int(rng.integers(1, 26)),
        "k2": int(rng.integers(1, 10)),
        "lambda_": float(rng.choice([0, 0.3, 1, rng.random()])),
        "queries_only": bool(rng.integers(2)),
        "precision": str(rng.choice(["float32", "reference"])),
    }
    return rng, rows, dist, q, settings


@pytest.mark.parametrize("part", range(8))
def test_against_the_oracle(part):
    for case in range(part, CASES, 8):
        rng, rows, dist, q, settings = draw(case)
        k1, k2, lam, masked, precision = settings.values()
        expected = oracle.rerank(dist, q, k1, k2, lam, masked, precision == "reference")
        np.testing.assert_array_equal(rerank_distance(dist, num_query=q, **settings), expected, str(case))
        k = int(rng.integers(1, expected.shape[1] + 1))
        for got, wanted in zip(
            rerank_distance(dist, num_query=q, topk=k, **settings), nearest(expected, k), strict=True
        ):
            np.testing.assert_array_equal(got, wanted, str(case))
        if rows is None:
            continue
        parts = [dist[:q, q:], dist[:q, :q], None if masked and q > k1 else dist[q:, q:]]
        np.testing.assert_array_equal(rerank_distance(*parts, **settings), expected, str(case))
        if precision == "reference":
            continue  # products round differently than direct differences
        result = rerank(rows[:q], rows[q:], **settings)
        np.testing.assert_allclose(result, expected, atol=2e-6, rtol=0, err_msg=str(case))
        for got, wanted in zip(rerank(rows[:q], rows[q:], topk=k, **settings), nearest(result.numpy(), k), strict=True):
            np.testing.assert_array_equal(got, wanted, str(case))


@pytest.mark.parametrize("precision", ["float32", "reference"])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_metrics_and_dtypes(metric, dtype, precision):
    query, gallery = clusters(40, 70, 24, dtype=dtype)
    x = torch.cat([query, gallery]).double()
    if metric == "cosine":
        x = torch.nn.functional.normalize(x)
        dist = 1 - x @ x.T
    else:
        dist = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        dist = dist if metric == "euclidean" else dist.square()
    result = rerank(query, gallery, k1=9, k2=4, metric=metric, precision=precision)
    assert result.dtype == torch.float32
    if precision == "float32":
        expected = oracle.rerank(dist.float().numpy(), 40, 9, 4, 0.3)
        np.testing.assert_allclose(result, expected, atol=1e-6, rtol=0)
        return
    x = torch.cat([query, gallery]).float()  # the float32 products, whose last bits decide a rounding to float16
    if metric == "cosine":
        x = torch.nn.functional.normalize(x)
        dist = 1 - x @ x.T
    else:
        dist = torch.from_numpy(oracle.squared_distances(x))
        dist = dist if metric == "sqeuclidean" else dist.clamp(min=0).sqrt()
    np.testing.assert_array_equal(result, oracle.rerank(dist.numpy(), 40, 9, 4, 0.3, half=True))


@pytest.mark.parametrize("queries_only", [False, True])
@pytest.mark.parametrize("shape", [(530, 20, 600), (30, 1040, 40), (1, 530, 8), (530, 1, 8)])
def test_many_tiles(shape, queries_only, with_threads, monkeypatch):
    q, g, d = shape
    query, gallery = clusters(q, g, d)
    x = torch.cat([query, gallery]).double()
    dist = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square().float().numpy()
    expected = oracle.rerank(dist, q, 20, 6, 0.3, queries_only)
    one = with_threads(1, lambda: rerank(query, gallery, queries_only=queries_only))
    np.testing.assert_allclose(one, expected, atol=2e-6, rtol=0)
    assert torch.equal(with_threads(2, lambda: rerank(query, gallery, queries_only=queries_only)), one)
    monkeypatch.setattr(_rerank, "BLOCK", 4 * g * 130)
    for got, wanted in zip(
        rerank(query, gallery, queries_only=queries_only, topk=min(g, 30)), nearest(one.numpy(), 30), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


def test_reference_is_the_same_in_blocks_and_threads(with_threads, monkeypatch):
    query, gallery = clusters(60, 90, 700)
    one, two = (with_threads(n, lambda: rerank(query, gallery, precision="reference")) for n in (1, 2))
    assert torch.equal(one, two)
    monkeypatch.setattr(_distances, "BLOCK", 4 * 150 * 32)
    assert torch.equal(rerank(query, gallery, precision="reference"), one)
    assert torch.equal(
        rerank(query, gallery, precision="reference", queries_only=True, topk=90)[0].sort().values,
        rerank(query, gallery, precision="reference", queries_only=True).sort().values,
    )


def test_every_instruction_set_gives_the_same_lists(isa):
    query, gallery = clusters(60, 90, 33)
    x = torch.cat([query, gallery]).double()
    dist = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square().float()
    expected = rerank_distance(dist, num_query=60)
    np.testing.assert_allclose(rerank(query, gallery), expected, atol=1e-6, rtol=0)


def test_a_shared_offset_does_not_hide_the_neighbours():
    query, gallery = clusters(30, 40, 16, dtype=torch.float64)
    expected = rerank(query, gallery)
    np.testing.assert_allclose(rerank(query + 1e6, gallery + 1e6), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_copies_have_no_distance(metric):
    query, _ = clusters(30, 1, 64)
    result = rerank(query * 1000, query.repeat(2, 1) * 1000, metric=metric, lambda_=1)  # the original distance alone
    assert result[range(30), range(30)].max() < 1e-7
    assert torch.equal(result[:, :30], result[:, 30:])


def test_defined_at_the_edges():
    one = torch.ones(1, 3)
    # Equal rows: no distance, so O is 0, both rows have the same weights, and nothing is left.
    assert rerank(one, one).tolist() == [[0.0]]
    assert rerank(one, one, k1=50, k2=50, queries_only=True).tolist() == [[0.0]]
    assert rerank(one, one.repeat(5, 1), topk=5)[1].tolist() == [[0, 1, 2, 3, 4]]
    # Of many equal rows, a list of k1 + 1 holds the first: the others are nobody's neighbours and have no weights.
    expected = oracle.rerank(np.zeros((40, 40), np.float32), 20, 3, 2, 0.5)
    np.testing.assert_array_equal(rerank(one.repeat(20, 1), one.repeat(20, 1), k1=3, k2=2, lambda_=0.5), expected)
    assert rerank(np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)).shape == (2, 1)


PEAK = """
import resource, torch
from vifast.retrieval import rerank
q, g = torch.randn(60, 16), torch.randn(9000, 16)
rerank(q, g[:500], topk=10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rerank(q, g, topk=10)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_no_matrix_in_memory():
    grown = int(
        subprocess.run(
            [sys.executable, "-c", PEAK], cwd=Path(__file__).parent, capture_output=True, check=True, text=True
        ).stdout
    )
    assert grown < 60 * 2**20  # the matrix would have 313 MiB


def test_inputs_are_not_written_to():
    query, gallery = clusters(20, 30, 5)
    x = torch.cat([query, gallery])
    dist = torch.cdist(x, x)
    parts = [dist[:20, 20:].contiguous(), dist[:20, :20].contiguous(), dist[20:, 20:].contiguous()]
    before = [t.clone() for t in (query, gallery, dist, *parts)]
    rerank(query, gallery)
    rerank_distance(dist, num_query=20)
    rerank_distance(*parts)
    rerank_distance(*parts, topk=3)
    for after, first in zip((query, gallery, dist, *parts), before, strict=True):
        assert torch.equal(after, first)


@pytest.mark.parametrize("precision", ["float32", "reference"])
def test_more_neighbours_than_rows(precision):
    query, gallery = clusters(6, 9, 4)
    x = torch.cat([query, gallery]).numpy()
    matrix = ((x[:, None] - x[None]) ** 2).sum(2)
    expected = oracle.rerank(matrix, 6, 30, 40, 0.3, half=precision == "reference")
    np.testing.assert_array_equal(rerank_distance(matrix, num_query=6, k1=30, k2=40, precision=precision), expected)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
def test_graph_against_the_oracle(metric):
    for case in range(30):
        rng = np.random.default_rng(case)
        q, g, k1, k2 = (int(rng.integers(1, high)) for high in (20, 30, 15, 8))
        rows = rng.integers(-2, 3, (q + g, 3)) if case % 2 else rng.standard_normal((q + g, 4))
        norms = np.linalg.norm(rows, axis=1)
        norms = np.where(norms > 0, norms, 1)
        cosine = rows @ rows.T / norms[:, None] / norms
        dist = ((rows[:, None] - rows[None]) ** 2).sum(2)
        if metric == "cosine":
            if case % 2:
                continue  # equal angles tie in exact arithmetic only
            dist = 1 - cosine
        alpha = float(rng.choice([0, 1, 2, 3.5]))
        expected = oracle.graph(dist, cosine, q, k1, k2, alpha)
        arguments = {"k1": k1, "k2": k2, "metric": metric, "method": "gnn", "alpha": alpha}
        result = rerank(torch.from_numpy(rows).float()[:q], torch.from_numpy(rows).float()[q:], **arguments)
        np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0, err_msg=str(case))
        k = int(rng.integers(1, g + 1))
        top = rerank(rows[:q].astype(np.float32), rows[q:].astype(np.float32), topk=k, **arguments)
        for got, wanted in zip(top, nearest(result.numpy(), k), strict=True):
            np.testing.assert_array_equal(got, wanted, str(case))


def test_graph_is_the_same_for_any_number_of_threads(with_threads):
    query, gallery = clusters(90, 170, 20)
    one, two = (with_threads(n, lambda: rerank(query, gallery, method="gnn")) for n in (1, 2))
    assert torch.equal(one, two)
    assert rerank(query, query, method="gnn").diagonal().abs().max() < 1e-6  # a row and its copy share all neighbours


FEATURES = torch.randn(5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k1": 0}, ValueError, "k1: expected at least 1, got 0"),
        ({"k1": 2.5}, TypeError, "k1: expected a whole number, got float"),
        ({"k2": 0}, ValueError, "k2: expected at least 1, got 0"),
        ({"lambda_": 1.5}, ValueError, "lambda_: expected 0 to 1, got 1.5"),
        ({"lambda_": "a"}, TypeError, "lambda_: expected a number, got str"),
        ({"metric": "dot"}, ValueError, "metric: expected one of sqeuclidean, euclidean, cosine, got 'dot'"),
        ({"precision": "half"}, ValueError, "precision: expected one of float32, reference, got 'half'"),
        ({"method": "graph"}, ValueError, "method: expected one of k-reciprocal, gnn, got 'graph'"),
        ({"method": "gnn", "queries_only": True}, ValueError, "queries_only: expected False"),
        ({"method": "gnn", "precision": "reference"}, ValueError, "precision: expected float32"),
        ({"alpha": -1}, ValueError, "alpha: expected at least 0, got -1"),
        ({"queries_only": 1}, TypeError, "queries_only: expected True or False, got int"),
        ({"topk": 6}, ValueError, "topk: expected at most 5, the rows of gallery, got 6"),
        ({"topk": 0}, ValueError, "topk: expected at least 1, got 0"),
        ({"query": [1.0]}, TypeError, "query: expected a tensor or an array, got list"),
        ({"query": torch.empty(0, 3)}, ValueError, "query: expected at least one row and one column"),
        ({"gallery": torch.empty(0, 3)}, ValueError, "gallery: expected at least one row and one column"),
        ({"gallery": torch.ones(2, 4)}, ValueError, "gallery: expected 3 columns as in query"),
        ({"query": torch.tensor([[1.0, 2.0, math.nan]])}, ValueError, "query: row 0 is not finite"),
        ({"gallery": torch.full((1, 3), 1e19)}, ValueError, "gallery: expected rows of a norm of at most 1e"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        rerank(**({"query": FEATURES, "gallery": FEATURES} | arguments))


SQUARE = torch.ones(5, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dist": SQUARE.int()}, TypeError, "dist: expected a floating-point matrix, got torch.int32"),
        ({"dist": SQUARE[0]}, ValueError, "dist: expected a matrix of at least one row and column"),
        ({"dist": SQUARE[:, :4], "num_query": 2}, ValueError, r"dist: expected shape \[5, 5\], got \[5, 4\]"),
        ({"num_query": 5}, ValueError, "num_query: expected less than 5, the rows of dist, got 5"),
        ({"num_query": 0}, ValueError, "num_query: expected at least 1, got 0"),
        ({"num_query": 2, "query_query": SQUARE}, ValueError, "num_query: expected None with query_query"),
        ({}, ValueError, "query_query: expected distances of queries to queries"),
        ({"query_query": SQUARE}, ValueError, "gallery_gallery: expected distances of the gallery to itself"),
        (
            {"query_query": SQUARE, "queries_only": True},
            ValueError,
            "gallery_gallery: expected distances of the gallery to itself",
        ),
        (
            {"query_query": SQUARE[:4, :4], "gallery_gallery": SQUARE},
            ValueError,
            r"query_query: expected shape \[5, 5\], got \[4, 4\]",
        ),
        ({"num_query": 2, "topk": 4}, ValueError, "topk: expected at most 3"),
        ({"dist": SQUARE / 0, "num_query": 2}, ValueError, "dist: expected finite distances, found one that is not"),
        (
            {"query_query": SQUARE * math.nan, "gallery_gallery": SQUARE},
            ValueError,
            "query_query: expected finite distances",
        ),
    ],
)
def test_wrong_matrices(arguments, error, message):
    with pytest.raises(error, match=message):
        rerank_distance(**({"dist": SQUARE} | arguments))


def test_binding_refuses_what_does_not_fit():
    lists = torch.tensor([[0, 1], [1, 7]], dtype=torch.int32)
    members, count = torch.empty(2, 2, dtype=torch.int32), torch.empty(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="lists: expected rows below 2"):
        _C.rerank_reciprocal(lists, 2, members, count, 1)
    lists[1, 1] = 0
    with pytest.raises(ValueError, match="width: expected 1 to 2"):
        _C.rerank_reciprocal(lists, 3, torch.empty(2, 3, dtype=torch.int32), count, 1)
    begin = torch.tensor([0, 1, 3])
    with pytest.raises(ValueError, match="begin: reaches beyond the entries"):
        _C.rerank_normalise(begin, torch.ones(2), False, 1)
    with pytest.raises(ValueError, match="begin: expected rising offsets"):
        _C.rerank_normalise(begin.flip(0), torch.ones(5), False, 1)
    with pytest.raises(ValueError, match="k: expected 1 to 3, got 4"):
        _C.smallest(torch.ones(1, 3), 4, torch.empty(1, 4), torch.empty(1, 4, dtype=torch.int64), 1)
    column = torch.tensor([0, 5, 1], dtype=torch.int32)
    sparse = (begin, torch.tensor([1, 2], dtype=torch.int32), column, torch.ones(3))
    with pytest.raises(ValueError, match="column: expected columns below 2"):
        _C.rerank_invert(*sparse, 0, torch.empty(3, dtype=torch.int64), column, torch.ones(3))
    with pytest.raises(ValueError, match="metric: expected sqeuclidean, euclidean or cosine, got dot"):
        _C.rerank_distances_float32(FEATURES, FEATURES, None, "dot", 2, 0, torch.zeros(2), None, 1)
    with pytest.raises(ValueError, match="first: expected rows of the queries"):
        _C.rerank_distances_float32(FEATURES, FEATURES, None, "cosine", 2, 1, torch.zeros(2), None, 1)
