import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.center_cluster import center_cluster
from vifast.testing import check_op, check_values, features


def test_two_identities_done_by_hand(backend):
    feat = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]], device=backend.device, requires_grad=True)
    labels = torch.tensor([7, 7, -1], device=backend.device)
    loss = F.center_cluster_loss(feat, labels, margin=5.0)  # centers (1, 0) and (1, 3): 2 apart from the margin
    loss.backward()
    assert_close(loss.item(), 2 / 3 + 2.0)
    wanted = [[-1 / 3, 0.5], [1 / 3, 0.5], [0.0, -1.0]]  # drawn to (1, 0) from both sides, pushed up and down
    assert_close(feat.grad.cpu(), torch.tensor(wanted), rtol=1e-6, atol=1e-7)


def test_op():
    def make_args(n):
        feat, labels = features(n, 7, num_instances=3)
        return feat.requires_grad_(), labels, 6.0, "exact"

    check_op(center_cluster, make_args, length=9, outputs=1)


@pytest.mark.parametrize("n", [3, 16, 65, 128, 129])  # less than a block, one, several, the last launched once, beyond
def test_values_on_every_back_end(backend, n):
    feat, labels = features(n, 140, num_instances=3, device=backend.device)  # two blocks of columns
    check_values(center_cluster, (feat.requires_grad_(), labels, 17.0, "exact"), length=140, outputs=1)


@pytest.mark.parametrize("margin", [0.0, 2.0, 4.0, 100.0])
def test_no_some_and_all_pairs_within_the_margin(backend, margin):
    feat, labels = features(21, 6, device=backend.device)
    check_values(center_cluster, (feat.requires_grad_(), labels, margin, "exact"), length=21, outputs=1)


@pytest.mark.parametrize("n", [12, 140])
def test_a_bad_row_spoils_the_loss_and_no_other_gradient(backend, n):
    feat, labels = features(n, 5, device=backend.device)
    feat[3, 1] = torch.inf
    feat.requires_grad_()
    loss = F.center_cluster_loss(feat, labels, margin=20.0)
    assert not loss.isfinite()
    (grad,) = torch.autograd.grad(loss, feat)
    assert grad.isfinite().all()
    assert (grad[labels == labels[3]] == 0).all()


def test_rows_in_their_centers_and_equal_centers_pull_nothing(backend):
    feat, labels = torch.ones(6, 3, device=backend.device), torch.arange(6, device=backend.device)
    feat[4:] = 2.0
    for ids in (labels, labels // 2):  # every row alone; equal rows of one identity
        x = feat.clone().requires_grad_()
        loss = F.center_cluster_loss(x, ids, margin=1.0)
        pairs = {6: 14, 3: 2}[len(ids.unique())]  # at the floor; the others are sqrt(3) apart
        assert_close(loss.item(), pairs / {14: 30, 2: 6}[pairs], rtol=1e-5, atol=1e-6)
        assert (torch.autograd.grad(loss, x)[0] == 0).all()


def test_gradcheck():
    feat, labels = features(9, 4, num_instances=3, dtype=torch.float64)
    feat.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.center_cluster_loss(x, labels, margin=3.0), feat)


def test_many_identities_have_the_bits_of_any_thread_count(with_threads):
    feat, labels = features(900, 40, num_instances=2)
    feat.requires_grad_()
    results = []
    for threads in (1, 2):
        with_threads(threads)
        loss = F.center_cluster_loss(feat, labels, margin=12.0)
        results.append((loss, torch.autograd.grad(loss, feat)[0]))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("shape", "count", "got"), [((3, 5), 4, r"\[3, 5\] and \[4\]"), ((3,), 3, r"\[3\] and \[3\]")])
def test_shapes_that_do_not_fit_are_named(shape, count, got):
    with pytest.raises(ValueError, match=rf"^center_cluster: expected \[N, D\] and \[N\], got {got}$"):
        center_cluster(torch.zeros(shape), torch.zeros(count, dtype=torch.int64), 0.7, "exact")
