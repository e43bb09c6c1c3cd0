from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels import _C
from vifast.kernels._small import SMALL
from vifast.kernels.batch_hard import batch_hard
from vifast.testing import assert_close_to_oracle, check_op, check_values, features, near_duplicates

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_triplet.npz"


@pytest.fixture(params=[SMALL, 0], ids=["small", "streamed"])
def size(request, backend, monkeypatch):
    """Few rows by the kernels for few and by those for many."""
    if backend.name == "cpu" and request.param == 0:
        pytest.skip("the CPU has one path")
    monkeypatch.setattr("vifast.kernels.batch_hard.SMALL", request.param)


def by_difference(feat, labels, reference=None, reference_labels=None):
    """``(i_pos, i_neg, d_pos, d_neg)`` from all differences in float64; NumPy's argmin takes the first of equals."""
    x = feat.double().numpy()
    y, y_labels = (x, labels) if reference is None else (reference.double().numpy(), reference_labels)
    dist = np.sqrt(np.maximum(((x[:, None] - y) ** 2).sum(-1), 1e-12))
    same = labels.numpy()[:, None] == y_labels.numpy()
    pos, neg = np.where(same, dist, -np.inf), np.where(same, np.inf, dist)
    i_pos, i_neg = pos.argmax(1), neg.argmin(1)
    rows = np.arange(len(x))
    d_pos, d_neg = pos[rows, i_pos], neg[rows, i_neg]
    i_pos[np.isinf(d_pos)], i_neg[np.isinf(d_neg)] = -1, -1
    return tuple(map(torch.from_numpy, (i_pos, i_neg, d_pos, d_neg)))


def same_pairs(actual, expected):
    for index, wanted in zip(actual[:2], expected[:2], strict=True):
        assert torch.equal(index.cpu(), wanted)
    for dist, wanted in zip(actual[2:], expected[2:], strict=True):
        assert_close_to_oracle(dist, wanted, length=1)


def test_a_table_done_by_hand(backend):
    feat = torch.tensor([[0.0], [1.0], [5.0], [7.0]], device=backend.device, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1], device=backend.device)
    i_pos, i_neg, d_pos, d_neg = F.hard_pairs(feat, labels)
    assert (i_pos.tolist(), i_neg.tolist()) == ([1, 0, 3, 2], [2, 2, 1, 1])
    assert (d_pos.tolist(), d_neg.tolist()) == ([1, 1, 2, 2], [5, 4, 4, 6])
    loss = F.triplet_loss(feat, labels, margin=3.5, reduction="none")
    assert loss.tolist() == [0, 0.5, 1.5, 0]
    loss.sum().backward()  # rows 1 and 2 are active: (1, 0) and (2, 3) pull, (1, 2) and (2, 1) push
    assert feat.grad.flatten().tolist() == [-1, 3, -3, 1]


def test_a_reference_set_done_by_hand(backend):
    feat = torch.tensor([[0.0], [10.0], [20.0]], device=backend.device)
    reference = torch.tensor([[1.0], [4.0], [12.0]], device=backend.device)
    labels, reference_labels = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])
    i_pos, i_neg, d_pos, d_neg = F.hard_pairs(
        feat, labels.to(backend.device), reference, reference_labels.to(backend.device)
    )
    assert (i_pos.tolist(), i_neg.tolist()) == ([1, 2, -1], [2, 1, 2])
    assert (d_pos.tolist(), d_neg.tolist()) == ([4, 2, -torch.inf], [12, 6, 8])


@pytest.mark.parametrize("margin", [0.3, None])
def test_no_positive_or_no_negative_counts_as_zero(backend, margin):
    feat, reference = torch.randn(3, 4, device=backend.device), torch.randn(5, 4, device=backend.device)
    zeros = torch.zeros(3, dtype=torch.int64, device=backend.device)
    for label in (1, 0):
        reference_labels = torch.full((5,), label, device=backend.device)
        loss = F.triplet_loss(
            feat, zeros, margin=margin, reference=reference, reference_labels=reference_labels, reduction="none"
        )
        assert loss.tolist() == [0, 0, 0]
    i_pos, i_neg, d_pos, d_neg = F.hard_pairs(feat, zeros)
    assert i_pos.min() >= 0
    assert i_neg.tolist() == [-1, -1, -1]
    assert d_neg.tolist() == [torch.inf] * 3
    assert d_pos.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_to_mine(backend, shape):
    feat = torch.randn(*shape, device=backend.device, requires_grad=True)
    labels = torch.arange(shape[0], device=backend.device)
    empty = torch.randn(0, shape[1], device=backend.device)
    i_pos, i_neg, d_pos, d_neg = F.hard_pairs(feat, labels, empty, labels[:0])
    assert i_pos.tolist() == i_neg.tolist() == [-1] * shape[0]
    assert d_pos.tolist() == [-torch.inf] * shape[0]
    assert d_neg.tolist() == [torch.inf] * shape[0]
    F.triplet_loss(feat, labels).backward()
    assert feat.grad.shape == shape


@pytest.mark.parametrize("case", "abcd")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(case, dtype, backend):
    if backend.name == "triton" and case != "a":
        pytest.skip("one case is enough for the interpreter")
    with np.load(GOLDEN) as golden:
        data = {name: torch.from_numpy(golden[f"{case}__{name}"]) for name in ("x", "y", "loss", "dist_ap", "dist_an")}
        grad, margin = torch.from_numpy(golden[f"{case}__grad_x"]), float(golden[f"{case}__margin"])
    feat = data["x"].to(backend.device, dtype).requires_grad_()
    labels = data["y"].to(backend.device)
    loss = F.triplet_loss(feat, labels, margin=margin)
    loss.backward()
    _, _, d_pos, d_neg = F.hard_pairs(feat, labels)
    pairs = (loss, data["loss"]), (d_pos, data["dist_ap"]), (d_neg, data["dist_an"]), (feat.grad, grad)
    for actual, wanted in pairs:
        if dtype == torch.float64:
            assert_close(actual.cpu(), wanted, rtol=1e-9, atol=1e-9)
        else:
            assert_close_to_oracle(actual, wanted, length=feat.size(1))


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("other", [False, True], ids=["self", "reference"])
def test_op(metric, margin, other):
    def make_args(n):
        feat, labels = features(n, 7, num_instances=3)
        feat = torch.nn.functional.normalize(feat) if metric == "cosine" else feat
        reference = feat.flip((0, 1))[: n - 1].clone().requires_grad_() if other else None
        reference_labels = labels.flip(0)[: n - 1].clone() if other else None
        reduction = "none" if other else "mean"
        return feat.requires_grad_(), labels, reference, reference_labels, metric, margin, "exact", reduction

    check_op(batch_hard, make_args, length=9, outputs=5)


# outputs: only the loss is differentiated; the loss and d_pos; all three. Each is a kernel of its own.
@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("other", [False, True], ids=["self", "reference"])
def test_values_on_every_back_end(backend, size, outputs, metric, margin, other):
    feat, labels = features(35, 18, num_instances=3, device=backend.device)
    reference = feat.flip((0, 1))[:33].clone().requires_grad_() if other else None
    reference_labels = labels.flip(0)[:33].clone() if other else None
    args = (feat.requires_grad_(), labels, reference, reference_labels, metric, margin, "exact", "none")
    check_values(batch_hard, args, length=35, outputs=outputs)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("n", [3, 16, 65, 128, 129])  # less than a block of anchors, one, several, the first beyond
def test_reductions_on_every_back_end(backend, reduction, n):
    feat, labels = features(n, 200, num_instances=3, device=backend.device)  # two blocks of columns
    args = (feat.requires_grad_(), labels, None, None, "euclidean", 0.3, "exact", reduction)
    check_values(batch_hard, args, length=n, outputs=2)


def test_gradients_of_one_distance_alone(backend):
    feat, labels = features(8, 6, num_instances=2, device=backend.device)
    feat.requires_grad_()
    i_pos, i_neg, d_pos, d_neg = F.hard_pairs(feat, labels)
    rows = torch.arange(8, device=backend.device)
    for dist, index in ((d_pos, i_pos), (d_neg, i_neg)):
        (grad,) = torch.autograd.grad(dist.sum(), feat, retain_graph=True)
        pull = (feat - feat[index]) / dist.unsqueeze(1)
        wanted = torch.zeros_like(feat).index_add(0, rows, pull).index_add(0, index, -pull)
        assert_close(grad, wanted.detach())


def test_more_columns_than_a_block(backend):
    feat, labels = features(5, 2050, num_instances=2, device=backend.device)
    args = (feat.requires_grad_(), labels, None, None, "euclidean", 0.3, "exact", "none")
    check_values(batch_hard, args, length=2050, outputs=5)


@pytest.mark.parametrize(("margin", "metric"), [(0.3, "euclidean"), (None, "sqeuclidean"), (0.5, "cosine")])
def test_gradcheck(margin, metric):
    feat, labels = features(10, 4, num_instances=3, dtype=torch.float64)
    reference, reference_labels = features(7, 4, num_instances=3, dtype=torch.float64, seed=1)
    feat.requires_grad_(), reference.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.triplet_loss(x, labels, margin=margin, metric=metric), feat)
    assert torch.autograd.gradcheck(
        lambda x, y: F.triplet_loss(
            x, labels, margin=margin, metric=metric, reference=y, reference_labels=reference_labels
        ),
        (feat, reference),
    )
    assert torch.autograd.gradcheck(lambda x: F.hard_pairs(x, labels, metric=metric)[2:], feat)


def test_ties_of_equal_rows_go_to_the_lower_index(backend, size):
    labels = torch.arange(70, device=backend.device) // 7
    i_pos, i_neg, d_pos, _ = F.hard_pairs(torch.full((70, 5), 0.3, device=backend.device), labels)
    assert i_pos.tolist() == [7 * (i // 7) for i in range(70)]
    assert i_neg.tolist() == [7] * 7 + [0] * 63
    assert_close(d_pos, torch.full_like(d_pos, 1e-6))


def test_ties_on_a_grid_go_to_the_lower_index(backend, size):
    grid = torch.cartesian_prod(torch.tensor([-2.0, -1, 1, 2]), torch.tensor([-2.0, -1, 1, 2]))
    feat = torch.cat((grid, grid, grid))  # mean zero, so the products of all back ends are exact
    labels = torch.arange(48) % 6
    same_pairs(F.hard_pairs(feat.to(backend.device), labels.to(backend.device)), by_difference(feat, labels))


@pytest.mark.parametrize("n", [40, 255, 256, 257, 513, 600])
def test_more_ties_than_slots_across_tiles(n):
    feat = torch.randn(4, 12)[torch.randint(0, 4, (n,))] + 100
    labels = torch.randint(0, 3, (n,))
    same_pairs(F.hard_pairs(feat, labels), by_difference(feat, labels))
    other, other_labels = feat[: n // 2] * 1.5, labels[: n // 2]
    same_pairs(F.hard_pairs(feat, labels, other, other_labels), by_difference(feat, labels, other, other_labels))


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_mining_is_exact_whatever_the_products_lose(isa, offset, gap):
    feat, labels = features(280, 20, offset=offset)
    feat = near_duplicates(feat, gap, every=2)
    same_pairs(F.hard_pairs(feat, labels), by_difference(feat, labels))


@pytest.mark.parametrize("other", [False, True], ids=["self", "reference"])
def test_a_bad_row_reaches_only_its_anchors(backend, size, other):
    feat, labels = features(12, 6, num_instances=3, device=backend.device)
    feat[4] = torch.nan
    feat.requires_grad_()
    anchors = features(5, 6, num_instances=3, device=backend.device, seed=1)[0].requires_grad_() if other else feat
    own = labels[:5] if other else labels
    more = {"reference": feat, "reference_labels": labels} if other else {}
    loss = F.triplet_loss(anchors, own, reduction="none", **more)
    assert loss.isnan().any()
    loss.sum().backward()
    kept = torch.arange(12, device=backend.device) != 4
    assert feat.grad[kept].isfinite().all()
    assert anchors.grad[kept[: len(anchors)]].isfinite().all()
    i_pos, i_neg, d_pos, d_neg = F.hard_pairs(anchors, own, *more.values())
    with_bad = own == labels[4]
    whole = kept[: len(anchors)] | other  # the bad row itself may name any partner
    assert (i_pos[with_bad & whole] == 4).all()
    assert (i_neg[~with_bad] == 4).all()
    assert d_pos[with_bad].isnan().all()
    assert d_neg[~with_bad].isnan().all()


def test_the_extension_names_a_bad_argument():
    x, labels = torch.randn(4, 3), torch.arange(4)
    out = (*torch.empty(3, 4), *torch.empty(2, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="expected dtype float32, got float64"):
        _C.hard_mine(x.double(), labels, None, None, "euclidean", 0.3, *out, 1)
    with pytest.raises(ValueError, match=r"labels: expected shape \[4\], got \[3\]"):
        _C.hard_mine(x, labels[:3], None, None, "euclidean", 0.3, *out, 1)
