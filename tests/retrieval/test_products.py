import numpy as np
import pytest
import torch

from vifast.kernels import _C
from vifast.retrieval.products import GalleryProducts


def packed(rows, mean=None, threads=1):
    return _C.PackedRows(rows, mean, threads)


def test_products_of_any_shape(isa):
    generator = torch.Generator().manual_seed(0)
    for n, m, d in ((1, 1, 1), (3, 17, 5), (33, 530, 260), (0, 4, 3), (4, 0, 3)):
        a, b, mean = (torch.randn(*shape, generator=generator) for shape in ((n, d), (m, d), (d,)))
        out = torch.full((n, m + 7), torch.nan)
        packed(a, mean).products(packed(b, mean, 2), out[:, 3 : 3 + m], 2)
        expected = (a - mean).double() @ (b - mean).double().T
        torch.testing.assert_close(out[:, 3 : 3 + m].double(), expected, rtol=1e-5, atol=1e-4)
        assert out[:, :3].isnan().all()
        assert out[:, 3 + m :].isnan().all()


def test_an_element_depends_on_its_two_rows_alone():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(70, 600, generator=generator), torch.randn(1100, 600, generator=generator)
    whole, parts = torch.empty(70, 1100), torch.empty(70, 1100)
    packed(a).products(packed(b), whole, 2)
    for start in range(0, 1100, 77):
        for row in (0, 41):
            rows, columns = slice(row, 41 if row == 0 else 70), slice(start, start + 77)
            packed(a[rows]).products(packed(b[columns]), parts[rows, columns], 1)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_gallery_products_order_as_distances(metric):
    generator = torch.Generator().manual_seed(2)
    query, gallery = torch.randn(9, 40, generator=generator), torch.randn(2100, 40, generator=generator)
    made = GalleryProducts(gallery, metric, query.mean(0), 0, len(gallery))
    scale, bias = made.linear
    keys = scale * made.fill(query, torch.empty(9, 2100)) + bias
    wide = query.double() @ gallery.double().T
    expected = {
        "cosine": -wide / gallery.double().norm(dim=1),
        "euclidean": torch.cdist(query.double(), gallery.double()).square()
        - (query - query.mean(0)).double().square().sum(1, True),
        "dot": -wide,
    }[metric]
    np.testing.assert_allclose(keys, expected, rtol=1e-4, atol=1e-4)


def test_weighted_sums_of_any_shape(isa):
    generator = torch.Generator().manual_seed(3)
    for n, m, d in ((1, 1, 1), (3, 5, 7), (9, 1030, 100), (120, 120, 97), (0, 3, 4), (3, 0, 4)):
        weights, turned = torch.randn(n, m, generator=generator), torch.randn(m, n, generator=generator).T
        rows = torch.randn(m, d + 3, generator=generator)[:, 2:-1]
        out = torch.full((n, d + 2), torch.nan)
        inner = out[:, 1:-1]
        _C.weighted_sums(weights, rows, inner, False, 1)
        _C.weighted_sums(turned, rows, inner, True, 2)
        expected = (weights.double() + turned.double()) @ rows.double()
        torch.testing.assert_close(inner.double(), expected, rtol=1e-5, atol=1e-4)
        assert out[:, 0].isnan().all()
        assert out[:, -1].isnan().all()
        again = torch.empty(n, d)
        _C.weighted_sums(weights, rows, again, False, 2)
        _C.weighted_sums(turned, rows, again, True, 1)
        assert torch.equal(again, inner)


def test_bad_arguments():
    rows = torch.ones(3, 4)
    with pytest.raises(ValueError, match="other: expected rows of 4 columns, got 5"):
        packed(rows).products(packed(torch.ones(2, 5)), torch.empty(3, 2), 1)
    for out in (torch.empty(3, 3), torch.empty(2, 3).T, torch.empty(6)):
        with pytest.raises(ValueError, match="out: expected"):
            packed(rows).products(packed(torch.ones(2, 4)), out, 1)
    with pytest.raises(TypeError, match="out: expected dtype float32"):
        packed(rows).products(packed(rows), torch.empty(3, 3).double(), 1)
    with pytest.raises(ValueError, match="weights: expected shape"):
        _C.weighted_sums(torch.ones(2, 4), rows, torch.empty(2, 4), False, 1)
    with pytest.raises(ValueError, match="mean: expected shape"):
        packed(rows, torch.ones(3))
