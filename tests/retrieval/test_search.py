import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import retrieval_oracle as oracle
import torch

from vifast.kernels import _C
from vifast.retrieval import search
from vifast.retrieval.search import _definition, _Rows, distances

HERE = Path(__file__).parent  # not the root, whose bare package would hide an installed one
METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")


@pytest.fixture(params=["float32", "bfloat16"])
def products(request, monkeypatch):
    """The type that nominates; bfloat16 even where the processor has no products of it, and for small galleries."""
    module = sys.modules[_definition.__module__]
    monkeypatch.setattr(module, "HALF_FROM", 0 if request.param == "bfloat16" else math.inf)
    monkeypatch.setattr(_C, "multiplies_bfloat16", lambda: True)
    return request.param


def draw(rng, dtype, rows, columns, kind):
    """Features of one of four kinds: generic, few distinct values, few distinct rows, or generic with zero rows."""
    if kind == "integers":
        return torch.from_numpy(rng.integers(-2, 3, (rows, columns))).to(dtype)
    x = torch.from_numpy(rng.standard_normal((rows, columns))).to(dtype)
    if kind == "duplicates":
        x = x[torch.from_numpy(rng.integers(0, max(1, rows // 20), rows))]
    if kind == "zeros":
        x[torch.from_numpy(rng.random(rows) < 0.3)] = 0
    return x


def agree(result, expected, exact):
    """Equal indices; where two sums of the same numbers may round apart, equal up to pairs nearer than the rounding."""
    dist, index = (x.numpy() for x in result)
    np.testing.assert_allclose(dist, expected[0], rtol=1e-12 if dist.dtype == np.float64 else 1e-6, atol=1e-12)
    if exact:
        np.testing.assert_array_equal(index, expected[1])
        return
    wrong = index != expected[1]
    np.testing.assert_allclose(dist.astype(np.float64)[wrong], expected[0][wrong], rtol=1e-6, atol=1e-12)
    assert wrong.mean() < 0.05


def test_hand_made_table():
    gallery = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    query = torch.tensor([[2.0, 0.0]])
    for metric, dist, index in (
        ("cosine", [0, 0, 1, 1], [1, 2, 0, 3]),
        ("euclidean", [1, 1, 2, math.sqrt(8)], [1, 2, 3, 0]),
        ("sqeuclidean", [1, 1, 4, 8], [1, 2, 3, 0]),
        ("dot", [6, 2, 0, 0], [2, 1, 0, 3]),
    ):
        got = search(query, gallery, 4, metric=metric)
        assert got[0].tolist() == torch.tensor([dist], dtype=torch.float32).tolist()
        assert got[1].tolist() == [index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["generic", "integers", "duplicates", "zeros"])
@pytest.mark.parametrize("metric", METRICS)
def test_against_the_oracle(products, metric, kind, dtype):
    rng = np.random.default_rng([METRICS.index(metric), len(kind), dtype.itemsize])
    for case in range(6):
        q, g, d = rng.integers(1, 6), rng.integers(1, 300 if case % 2 else 8), rng.integers(1, 30)
        k = int(rng.integers(1, g + 1))
        query, gallery = draw(rng, dtype, q, d, kind), draw(rng, dtype, g, d, kind)
        exclude = torch.from_numpy(rng.random((q, g)) < 0.4) if case % 3 else None
        chunk = [None, 1, 7, 64][case % 4]
        result = search(query, gallery, k, metric=metric, exclude=exclude, chunk=chunk)
        expected = oracle.neighbours(query.double(), gallery.double(), k, metric, exclude)
        agree(result, expected, exact=kind == "integers" and metric != "cosine")


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_tie_to_the_lower_index(isa, products, metric):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 67, generator=generator)
    copies = torch.randint(0, 5, (1000,), generator=generator)
    dist, index = search(rows, rows[copies], 300, metric=metric)
    first = [torch.nonzero(copies == row).flatten()[:150].tolist() for row in range(5)]
    for q in range(5):
        assert index[q, :150].tolist() == first[q]
        assert dist[q, :150].unique().numel() == 1


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1.0, 1e18, 3e37])
@pytest.mark.parametrize("metric", METRICS)
def test_sizes_at_which_a_float32_product_fails(products, metric, scale):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(3, 12, generator=generator) * scale
    gallery = torch.randn(200, 12, generator=generator) * scale
    gallery[::3] /= 1e6
    index = search(query, gallery, 20, metric=metric)[1]
    np.testing.assert_array_equal(index, oracle.neighbours(query, gallery, 20, metric, None)[1])


def test_a_shared_offset_does_not_hide_the_nearest(products):
    generator = torch.Generator().manual_seed(2)
    gallery = torch.randn(500, 24, generator=generator) + 4096
    query = gallery[:40] + 0.001 * torch.randn(40, 24, generator=generator)
    for metric in METRICS:
        index = search(query, gallery, 5, metric=metric)[1]
        np.testing.assert_array_equal(index, oracle.neighbours(query, gallery, 5, metric, None)[1])


def test_an_offset_beyond_float32_does_not_hide_the_nearest(products):
    generator = torch.Generator().manual_seed(3)
    gallery = torch.randn(500, 24, generator=generator, dtype=torch.float64) + 2.0**30
    query = gallery[:40] + 0.1 * torch.randn(40, 24, generator=generator, dtype=torch.float64)
    for metric in ("euclidean", "sqeuclidean"):
        index = search(query, gallery, 5, metric=metric)[1]
        np.testing.assert_array_equal(index, oracle.neighbours(query, gallery, 5, metric, None)[1])


@pytest.mark.parametrize("metric", METRICS)
def test_rows_whose_order_bfloat16_turns_round(products, metric):
    """Every entry lies beside the middle between two bfloat16 numbers: rounding errs as much as it can, all one way."""
    rng = np.random.default_rng(7)
    side = torch.from_numpy(rng.choice([-1.0, 1.0], (400, 1)) * rng.random((400, 64)))
    gallery = (1 + 2.0**-8 + 2.0**-14 * side).float()
    gallery *= 2.0 ** torch.from_numpy(rng.integers(-2, 3, 64)).float()
    query = gallery[:20] * torch.from_numpy(rng.choice([-1.0, 1.0], (20, 1))).float()
    coarse = (query.bfloat16().float() @ gallery.bfloat16().float().T).argsort(stable=True)
    assert not torch.equal(coarse, (query.double() @ gallery.double().T).argsort(stable=True))
    result = search(query, gallery, 30, metric=metric)
    agree(result, oracle.neighbours(query.double(), gallery.double(), 30, metric, None), exact=False)


def test_coarse_products_are_given_up(monkeypatch, products):
    """Features that all point one way, as an untrained network's: bfloat16 cannot tell which are the nearest."""
    generator = torch.Generator().manual_seed(8)
    gallery = torch.randn(600, 40, generator=generator) + 30
    expected = oracle.neighbours(gallery[:50].double(), gallery.double(), 10, "cosine", None)
    types = []
    multiply = _Rows.products
    monkeypatch.setattr(_Rows, "products", lambda a, b, out: types.append(out.dtype) or multiply(a, b, out))
    agree(search(gallery[:50], gallery, 10, chunk=100), expected, exact=False)
    half = products == "bfloat16"
    assert types == [torch.bfloat16 if half else torch.float32] + 5 * [torch.float32]


@pytest.mark.parametrize("metric", METRICS)
def test_neither_threads_nor_tiles_change_a_bit(with_threads, products, metric, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    query, gallery = torch.randn(70, 600, generator=generator), torch.randn(900, 600, generator=generator)
    gallery[400:500] = gallery[:100]
    dist, index = with_threads(1, lambda: search(query, gallery, 30, metric=metric))
    for threads, chunk in ((2, None), (1, 100), (2, 1), (2, 33)):
        again = with_threads(threads, lambda chunk=chunk: search(query, gallery, 30, metric=metric, chunk=chunk))
        assert torch.equal(again[0], dist)
        assert torch.equal(again[1], index)
    monkeypatch.setattr(sys.modules[_definition.__module__], "MOST_QUERIES", 9)
    again = search(query, gallery, 30, metric=metric)
    assert torch.equal(again[0], dist)
    assert torch.equal(again[1], index)


def test_every_instruction_set_finds_the_same(isa, products):
    generator = torch.Generator().manual_seed(4)
    query, gallery = torch.randn(9, 35, generator=generator), torch.randn(333, 35, generator=generator)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q, g = query.to(dtype), gallery.to(dtype)
        np.testing.assert_array_equal(
            search(q, g, 50)[1], oracle.neighbours(q.double(), g.double(), 50, "cosine", None)[1]
        )


@pytest.mark.parametrize("metric", METRICS)
def test_every_instruction_set_has_the_same_bits(isa, metric):
    generator = torch.Generator().manual_seed(9)
    for dtype, d in ((torch.float64, 7), (torch.float64, 99), (torch.float32, 64), (torch.float16, 33)):
        query, gallery = (torch.randn(n, d, generator=generator).to(dtype) for n in (4, 50))
        dist, index = search(query, gallery, 50, metric=metric)
        assert _C.set_isa("scalar")
        again = search(query, gallery, 50, metric=metric)
        _C.set_isa(isa)
        assert torch.equal(again[0], dist)
        assert torch.equal(again[1], index)


def test_half_precision_values_of_every_exponent():
    bits = torch.arange(1, 0x7C00, 31, dtype=torch.int16)
    values = bits.view(torch.float16)
    dist = search(torch.ones(1, 1, dtype=torch.float16), values[:, None], len(values), metric="dot")[0]
    assert torch.equal(dist[0], values.float().flip(0))
    assert torch.equal(search(-torch.ones(1, 1).half(), -values[:, None], 1, metric="dot")[0][0], values[-1:].float())


def test_excluded_rows_are_never_found():
    generator = torch.Generator().manual_seed(5)
    query, gallery = torch.randn(6, 8, generator=generator), torch.randn(40, 8, generator=generator)
    cams, other = torch.arange(6) % 3, torch.arange(40) % 3
    mask = cams[:, None] == other
    mask[0], mask[1, 3:] = True, True
    calls = []

    def block(q0, q1, g0, g1):
        calls.append((q0, q1, g0, g1))
        return mask[q0:q1, g0:g1]

    for metric in METRICS:
        worst = -math.inf if metric == "dot" else math.inf
        dist, index = search(query, gallery, 30, metric=metric, exclude=mask)
        assert index[0].tolist() == [-1] * 30
        assert dist[0].tolist() == [worst] * 30
        assert sorted(index[1, :2].tolist()) == [0, 2]
        assert index[1, 2:].tolist() == [-1] * 28
        found = index[2:].clamp(min=0)
        assert not mask[2:].gather(1, found)[index[2:] >= 0].any()
        for other_form in (block, mask.numpy()):
            again = search(query, gallery, 30, metric=metric, exclude=other_form, chunk=16)
            assert torch.equal(again[0], dist)
            assert torch.equal(again[1], index)
    assert calls[:3] == [(0, 6, 0, 16), (0, 6, 16, 32), (0, 6, 32, 40)]


@pytest.mark.parametrize("metric", METRICS)
def test_the_definition_for_other_devices(metric):
    rng = np.random.default_rng(6)
    query, gallery = (draw(rng, torch.float32, n, 9, "integers") for n in (20, 150))  # sums without rounding
    mask = torch.from_numpy(rng.random((20, 150)) < 0.3)
    expected = search(query, gallery, 110, metric=metric, exclude=mask)
    keys, index = _definition(query, gallery, 110, metric, lambda a, b, c, d: mask[a:b, c:d], 40, 0, 150)
    torch.testing.assert_close(distances(keys, metric, query.dtype), expected[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(index, expected[1])


def test_arrays_layouts_and_gradients():
    generator = torch.Generator().manual_seed(7)
    query, gallery = torch.randn(5, 6, generator=generator), torch.randn(9, 6, generator=generator)
    dist, index = search(query, gallery, np.int64(3))
    for q, g in (
        (query.numpy(), gallery.numpy()),
        (query.T.contiguous().T, gallery.T.contiguous().T),
        (query.clone().requires_grad_(), gallery.clone().requires_grad_()),
    ):
        again = search(q, g, 3)
        assert torch.equal(again[0], dist)
        assert torch.equal(again[1], index)
        assert not again[0].requires_grad
    assert (dist.dtype, index.dtype) == (torch.float32, torch.int64)
    assert search(query.double(), gallery.double(), 3)[0].dtype == torch.float64


QUERY, GALLERY = torch.ones(3, 4), torch.ones(5, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([[1.0]], GALLERY, 1), {}, TypeError, "query: expected a tensor"),
        ((QUERY.long(), GALLERY, 1), {}, TypeError, "query: expected a floating"),
        ((QUERY[0], GALLERY, 1), {}, ValueError, "query: expected shape"),
        ((QUERY, GALLERY[:, :2], 1), {}, ValueError, "gallery: expected 4 columns"),
        ((QUERY, GALLERY.double(), 1), {}, TypeError, "gallery: expected torch.float32"),
        ((QUERY, GALLERY.to("meta"), 1), {}, ValueError, "gallery: expected device cpu"),
        ((QUERY[:0], GALLERY, 1), {}, ValueError, "query: expected at least one row"),
        ((QUERY, GALLERY[:0], 1), {}, ValueError, "gallery: expected at least one row"),
        ((QUERY * math.nan, GALLERY, 1), {}, ValueError, "query: row 0 is not finite"),
        ((QUERY, GALLERY * math.inf, 1), {}, ValueError, "gallery: row 0 is not finite"),
        ((QUERY, GALLERY * math.inf, 1), {"metric": "euclidean"}, ValueError, "gallery: row 0 is not finite"),
        ((QUERY.double() * 1e200, GALLERY.double(), 1), {}, ValueError, "query: row 0 is not finite"),
        ((QUERY, GALLERY, 0), {}, ValueError, "k: expected at least 1, got 0"),
        ((QUERY, GALLERY, 6), {}, ValueError, "k: expected at most 5"),
        ((QUERY, GALLERY, 1.0), {}, TypeError, "k: expected a whole number"),
        ((QUERY, GALLERY, 1), {"metric": "l2"}, ValueError, "metric: expected one of"),
        ((QUERY, GALLERY, 1), {"chunk": 0}, ValueError, "chunk: expected at least 1"),
        ((QUERY, GALLERY, 1), {"exclude": torch.zeros(3, 5)}, TypeError, "exclude: expected a bool"),
        ((QUERY, GALLERY, 1), {"exclude": torch.zeros(3, 4) > 0}, ValueError, r"exclude: expected shape \[3, 5\]"),
        (
            (QUERY, GALLERY, 1),
            {"exclude": torch.zeros(3, 5, device="meta") > 0},
            ValueError,
            "exclude: expected device",
        ),
        ((QUERY, GALLERY, 1), {"exclude": "mask"}, TypeError, "exclude: expected a tensor"),
        (
            (QUERY, GALLERY, 1),
            {"exclude": lambda *tile: torch.zeros(2, 2) > 0},
            ValueError,
            "exclude: expected the callable",
        ),
    ],
)
def test_bad_arguments(arguments, options, error, words):
    with pytest.raises(error, match=words):
        search(*arguments, **options)


PEAK = """
import resource, torch
from vifast.retrieval import search
q, g = torch.randn(5000, 16), torch.randn(40000, 16)
search(q[:2], g[:300], 3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
search(q, g, 100, metric="euclidean")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_no_matrix_in_memory():
    grown = int(
        subprocess.run([sys.executable, "-c", PEAK], cwd=HERE, capture_output=True, check=True, text=True).stdout
    )
    assert grown < 100 * 2**20  # the matrix would have 763 MiB
