import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.center_loss import center_loss
from vifast.testing import LAYOUTS, assert_close_to_oracle, check_op, check_values, features, with_layout


def batch(n, d, k, *, device="cpu", dtype=torch.float32):
    feat, labels = features(n, d, device=device, dtype=dtype)
    centers, _ = features(k, d, device=device, dtype=dtype, seed=1)
    return feat.requires_grad_(), labels, centers.requires_grad_()


def test_done_by_hand(backend):
    feat = torch.tensor([[1.0, 0.0], [4.0, 4.0], [7.0, 7.0]], device=backend.device, requires_grad=True)
    centers = torch.tensor([[0.0, 0.0], [9.0, 9.0], [4.0, 1.0]], device=backend.device, requires_grad=True)
    loss = F.center_loss(feat, torch.tensor([0, 2, 3], device=backend.device), centers)
    assert loss.item() == pytest.approx((1 + 9) / 9)
    (9 * loss).backward()
    assert_close(feat.grad.cpu(), torch.tensor([[2.0, 0], [0, 6], [0, 0]]))
    assert_close(centers.grad.cpu(), torch.tensor([[-2.0, 0], [0, 0], [0, -6]]))


def test_op():
    check_op(center_loss, lambda n: batch(n, 7, 3), length=7, outputs=1)


@pytest.mark.parametrize(
    ("n", "d", "k"), [(0, 3, 2), (1, 1, 1), (5, 3, 0), (4, 0, 3), (37, 70, 5), (12, 1100, 9), (200, 5, 60)]
)
def test_values_on_every_back_end(backend, n, d, k):
    check_values(center_loss, batch(n, d, k, device=backend.device), length=max(n, d, 1), outputs=1)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradient_that_is_wanted(backend, wanted):
    feat, labels, centers = batch(13, 9, 4, device=backend.device)
    both = torch.autograd.grad(F.center_loss(feat, labels, centers), (feat, centers))
    one = [x.detach().requires_grad_(want) for x, want in zip((feat, centers), wanted, strict=True)]
    (alone,) = torch.autograd.grad(F.center_loss(one[0], labels, one[1]), [x for x in one if x.requires_grad])
    assert torch.equal(alone, both[wanted.index(True)])


def test_rows_outside_get_no_gradient(backend):
    feat, _, centers = batch(5, 3, 2, device=backend.device)
    with torch.no_grad():
        feat[0], feat[4] = torch.nan, torch.inf
    loss = F.center_loss(feat, torch.tensor([-1, 0, 0, 1, 2**40], device=backend.device), centers)
    to_feat, to_centers = torch.autograd.grad(loss, (feat, centers))
    assert loss.isfinite()
    assert to_feat.any(1).tolist() == [False, True, True, True, False]
    assert to_centers.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_row_spoils_its_own_class_alone(backend, bad):
    feat, labels, centers = batch(12, 3, 3, device=backend.device)
    with torch.no_grad():
        feat[5, 1] = bad
    loss = F.center_loss(feat, labels, centers)
    assert not loss.isfinite()
    to_feat, to_centers = torch.autograd.grad(loss, (feat, centers))
    assert to_feat.isfinite().all(1).tolist() == [i != 5 for i in range(12)]
    assert to_centers.isfinite().all(1).tolist() == [k != labels[5] for k in range(3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_types_and_strides(backend, dtype, layout):
    feat, labels, centers = batch(24, 19, 6, device=backend.device, dtype=dtype)
    sides = [with_layout(x.detach(), layout).requires_grad_() for x in (feat, centers)]
    wide = [x.detach().double().requires_grad_() for x in sides]
    ours, oracle = F.center_loss(sides[0], labels.int(), sides[1]), F.center_loss(wide[0], labels, wide[1])
    assert_close_to_oracle(ours, oracle, length=24)
    for one, other in zip(torch.autograd.grad(ours, sides), torch.autograd.grad(oracle, wide), strict=True):
        assert one.dtype == dtype
        assert_close_to_oracle(one, other, length=24)


@pytest.mark.parametrize(("n", "d", "k"), [(400, 900, 20), (60, 2049, 395)])
def test_bits_do_not_depend_on_threads(with_threads, n, d, k):
    feat, labels, centers = batch(n, d, k)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        loss = F.center_loss(feat, labels, centers)
        results.append((loss, *torch.autograd.grad(loss, (feat, centers))))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_every_instruction_set(isa):
    check_values(center_loss, batch(60, 67, 9), length=67, outputs=1)


def test_gradcheck():
    feat, labels, centers = batch(9, 4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, c: F.center_loss(x, labels, c), (feat, centers))


def test_shapes_are_checked():
    feat, labels, centers = batch(4, 3, 2)
    with pytest.raises(ValueError, match=r"^center_loss: expected \[N, D\], \[N\] and \[K, D\], got \[4, 3\]"):
        center_loss(feat, labels, centers[:, :2])
