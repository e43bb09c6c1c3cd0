from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.pairwise_distance import pairwise_distance
from vifast.testing import assert_close_to_oracle, check_op, check_values, features, near_duplicates

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_table_done_by_hand(backend):
    feat = torch.tensor([[0.0, 0.0], [3.0, 4.0]], device=backend.device)
    other = torch.tensor([[0.0, 0.0], [6.0, 8.0], [0.0, 1.0]], device=backend.device)
    assert_close(F.pairwise_distance(feat, other).cpu(), torch.tensor([[1e-6, 10.0, 1.0], [5.0, 5.0, 18**0.5]]))
    assert F.pairwise_distance(feat, metric="sqeuclidean").tolist() == [[0, 25], [25, 0]]
    cosine = F.pairwise_distance(feat, torch.tensor([[4.0, -3.0], [3.0, 4.0]], device=backend.device), metric="cosine")
    assert_close(cosine[1].cpu(), torch.tensor([1.0, 0.0]))
    assert_close(cosine[0].cpu(), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(("file", "floor"), [("idkl_triplet", 1e-12), ("idkl_agw_wrt", 1e-12)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(backend, file, floor, dtype):
    with np.load(GOLDEN / f"{file}.npz") as golden:
        feat, dist = torch.from_numpy(golden["a__x"]), torch.from_numpy(golden["a__dist"])
    actual = F.pairwise_distance(feat.to(backend.device, dtype), floor=floor).cpu()
    off = ~torch.eye(len(dist), dtype=torch.bool)  # a product leaves noise where a row meets itself
    if dtype == torch.float64:
        assert_close(actual[off], dist[off], rtol=1e-9, atol=1e-9)
    else:
        assert_close_to_oracle(actual[off], dist[off], length=feat.size(1))
    assert actual[~off].max() <= 1e-5


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("other", [False, True], ids=["self", "other"])
def test_op(root, other):
    def make_args(n):
        feat, _ = features(n, 7)
        y = features(n + 1, 7, seed=1)[0].requires_grad_() if other else None
        return feat.requires_grad_(), y, 1e-3, root, "exact"

    check_op(pairwise_distance, make_args, length=10, outputs=1)


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 40), (40, 3), (34, 65)])
def test_values_on_every_back_end(backend, root, n, m):
    feat, other = features(n, 19, device=backend.device)[0], features(m, 19, seed=1, device=backend.device)[0]
    args = (feat.requires_grad_(), other.requires_grad_(), 1e-12, root, "exact")
    check_values(pairwise_distance, args, length=max(n, m, 19), outputs=1)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
def test_gradcheck(metric):
    x, y = (features(n, 4, dtype=torch.float64, seed=n)[0].requires_grad_() for n in (5, 4))
    assert torch.autograd.gradcheck(lambda a, b: F.pairwise_distance(a, b, metric=metric), (x, y))
    if metric == "sqeuclidean":  # the only one that is smooth where a row meets itself
        assert torch.autograd.gradcheck(lambda a: F.pairwise_distance(a, metric=metric), x)


def test_no_gradient_through_the_floor(backend):
    feat = torch.tensor([[0.0], [1.0], [1.5]], device=backend.device, requires_grad=True)
    dist = F.pairwise_distance(feat, floor=1.0)
    assert dist.tolist() == [[1, 1, 1.5], [1, 1, 1], [1.5, 1, 1]]
    dist.sum().backward()
    assert feat.grad.flatten().tolist() == [-2, 0, 2]


@pytest.mark.parametrize("floor", [1e-6, 1e-3, 0.1, 0.7])
def test_no_gradient_through_a_floor_that_float32_rounds(backend, floor):
    feat = torch.tensor([[0.0], [0.9 * floor**0.5]], device=backend.device, requires_grad=True)
    F.pairwise_distance(feat, floor=floor).sum().backward()
    assert feat.grad.flatten().tolist() == [0, 0]


@pytest.mark.parametrize("gap", [0.0, 1e-5, 1e-2])
def test_symmetric_with_an_exact_diagonal(backend, gap):
    feat = near_duplicates(features(40, 12, offset=50.0, device=backend.device)[0], gap)
    sq = F.pairwise_distance(feat, metric="sqeuclidean")
    assert (sq >= 0).all()
    assert (sq.diagonal() == 0).all()
    assert_close(sq, sq.T, rtol=1e-5, atol=0)


def test_a_zero_row_has_cosine_distance_half_of_its_partners_square(backend):
    dist = F.pairwise_distance(torch.tensor([[0.0, 0.0], [2.0, 0.0]], device=backend.device), metric="cosine")
    assert dist.tolist() == [[0, 0.5], [0.5, 0]]


def test_a_bad_row_stays_in_its_row_and_column(backend):
    feat, _ = features(10, 5, device=backend.device)
    feat[3, 1] = torch.nan
    bad = F.pairwise_distance(feat).isnan()
    wanted = torch.zeros_like(bad)
    wanted[3], wanted[:, 3] = True, True
    assert torch.equal(bad, wanted)
