from math import exp, log

import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.neighbor_loss import neighbor_loss
from vifast.testing import assert_close_to_oracle, check_op, check_values, features

METRICS = ("euclidean", "sqeuclidean", "cosine")


def pair(n, m, d=5, dtype=torch.float32, device="cpu"):
    """Rows with labels, and a reference of the same identities."""
    (x, labels), (y, to_labels) = (features(k, d, dtype=dtype, device=device, seed=k) for k in (n, m))
    return x, labels, y, to_labels


def scaled(metric, d=5):
    """Temperature at which the softmax is neither flat nor a maximum."""
    return {"euclidean": 0.7, "sqeuclidean": float(d), "cosine": 0.1}[metric]


def test_four_points_done_by_hand(backend):
    feat = torch.tensor([[0.0], [1.0], [3.0], [7.0]], device=backend.device, requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1], device=backend.device)
    loss = F.neighbor_loss(feat, labels, temperature=2.0, reduction="none")
    partition = [sum(exp(-abs(a - b) / 2) for b in (0, 1, 3, 7) if b != a) for a in (0, 1, 3)]
    wanted = [log(z) + mean / 2 - log(2) for z, mean in zip(partition, (2.0, 1.5, 2.5), strict=True)]
    assert_close(loss.cpu(), torch.tensor([*wanted, 0.0]), rtol=1e-6, atol=1e-7)
    loss[0].backward()
    to_1, to_2, to_3 = (1 / 2 * (share - exp(-d / 2) / partition[0]) for share, d in ((0.5, 1), (0.5, 3), (0, 7)))
    assert_close(
        feat.grad.squeeze(1).cpu(), torch.tensor([-to_1 - to_2 - to_3, to_1, to_2, to_3]), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reference", [False, True])
def test_op(metric, reference):
    def make_args(n):
        x, labels, y, to_labels = pair(n, n + 2)
        to = (y.requires_grad_(), to_labels) if reference else (None, None)
        return x.requires_grad_(), labels, *to, metric, scaled(metric), "exact", "none" if reference else "mean"

    check_op(neighbor_loss, make_args, length=9, outputs=1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [34, 129, 300])  # distances kept, the first on a GPU that are not, several tiles
def test_values_on_every_back_end(backend, metric, n):
    if backend.name == "triton" and n > 129:
        pytest.skip("slow in the interpreter")
    feat, labels = features(n, 5, device=backend.device)
    args = feat.requires_grad_(), labels, None, None, metric, scaled(metric), "exact", "none"
    check_values(neighbor_loss, args, length=n, outputs=1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "m"), [(5, 3), (16, 128), (17, 40), (3, 130), (257, 20)])
def test_a_reference_on_every_back_end(backend, metric, n, m):
    if backend.name == "triton" and n > 129:
        pytest.skip("slow in the interpreter")
    x, labels, y, to_labels = pair(n, m, device=backend.device)
    args = x.requires_grad_(), labels, y.requires_grad_(), to_labels, metric, scaled(metric), "exact", "none"
    check_values(neighbor_loss, args, length=max(n, m), outputs=1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("n", [2, 16, 65, 128])  # less than a block of rows, one, several, the last in one launch
def test_reductions_on_every_back_end(backend, reduction, n):
    feat, labels = features(n, 140, num_instances=3, device=backend.device)  # two blocks of columns
    args = feat.requires_grad_(), labels, None, None, "euclidean", 3.0, "exact", reduction
    check_values(neighbor_loss, args, length=n, outputs=1)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [False, True])
def test_more_rows_than_a_strip(backend, reference):
    x, labels, y, to_labels = pair(520, 515, 3, device=backend.device)
    to = (y.requires_grad_(), to_labels) if reference else (None, None)
    args = x.requires_grad_(), labels, *to, "euclidean", 1.0, "exact", "mean"
    check_values(neighbor_loss, args, length=520, outputs=1)


@pytest.mark.parametrize("n", [9, 140])
def test_a_set_may_be_constant(backend, n):
    x, labels, y, to_labels = pair(n, 12, device=backend.device)

    def grads(*wanted):
        leaves = [rows.detach().requires_grad_(want) for rows, want in zip((x, y), wanted, strict=True)]
        loss = F.neighbor_loss(leaves[0], labels, reference=leaves[1], reference_labels=to_labels)
        return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])

    to_x, to_y = grads(True, True)
    assert torch.equal(grads(True, False)[0], to_x)
    assert torch.equal(grads(False, True)[0], to_y)


@pytest.mark.parametrize("n", [9, 140])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_row_is_left_out(backend, n, bad):
    feat, labels = features(n, 4, device=backend.device)
    feat[2, 1] = bad
    keep = torch.arange(n) != 2
    results = []
    for rows in (keep, torch.ones(n, dtype=torch.bool)):
        x = feat[rows].requires_grad_()
        loss = F.neighbor_loss(x, labels[rows], reduction="none")
        (grad,) = torch.autograd.grad(loss[loss.isfinite()].sum(), x)
        results.append((loss.detach(), grad))
    (loss, grad), (with_bad, grad_with_bad) = results
    assert with_bad[2].isnan()
    assert_close(with_bad[keep], loss)
    assert_close(grad_with_bad[keep], grad)
    assert (grad_with_bad[2] == 0).all()


@pytest.mark.parametrize("n", [9, 140])
def test_bad_rows_beside_a_reference(backend, n):
    x, labels, y, to_labels = pair(n, 12, device=backend.device)
    args = {"reference": y.requires_grad_(), "reference_labels": to_labels, "reduction": "none"}
    x[2, 1] = torch.inf
    x.requires_grad_()
    loss = F.neighbor_loss(x, labels, **args)
    assert loss.isnan().sum() == 1
    to_x, to_y = torch.autograd.grad(loss[loss.isfinite()].sum(), (x, y))
    assert to_x.isfinite().all()
    assert to_y.isfinite().all()
    with torch.no_grad():
        y[1, 0] = -torch.inf
    loss = F.neighbor_loss(x, labels, **args)
    assert loss.isnan().all()
    for grad in torch.autograd.grad(loss.sum(), (x, y)):
        assert (grad == 0).all()


def test_a_sharp_softmax_neither_overflows_nor_vanishes(backend):
    feat, labels = features(12, 6, scale=30.0, device=backend.device)
    for metric, temperature in (("euclidean", 0.01), ("sqeuclidean", 1.0), ("cosine", 0.005)):
        args = feat.requires_grad_(), labels, None, None, metric, temperature, "exact", "none"
        check_values(neighbor_loss, args, length=12, outputs=1)


def test_equal_rows_pull_nothing(backend):
    x, labels, y, to_labels = pair(6, 4, device=backend.device)
    y[:] = x[:4]
    x.requires_grad_()
    loss = F.neighbor_loss(x, labels, reference=y, reference_labels=to_labels, reduction="none")
    oracle = F.neighbor_loss(x.double(), labels, reference=y.double(), reference_labels=to_labels, reduction="none")
    assert_close_to_oracle(loss, oracle, length=6)
    assert torch.autograd.grad(loss.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("metric", METRICS)
def test_gradcheck(metric):
    x, labels, y, to_labels = pair(7, 5, 4, dtype=torch.float64)
    x.requires_grad_(), y.requires_grad_()
    options = {"metric": metric, "temperature": scaled(metric), "reduction": "none"}
    assert torch.autograd.gradcheck(lambda x: F.neighbor_loss(x, labels, **options), x)
    options |= {"reference_labels": to_labels}
    assert torch.autograd.gradcheck(lambda x, y: F.neighbor_loss(x, labels, reference=y, **options), (x, y))


@pytest.mark.parametrize(("n", "m"), [(64, 120), (700, 90), (90, 700)])
def test_bits_beside_a_reference_do_not_depend_on_threads(with_threads, n, m):
    x, labels, y, to_labels = pair(n, m, 96)
    leaves, results = (x.requires_grad_(), y.requires_grad_()), []
    for threads in (1, 2):
        with_threads(threads)
        loss = F.neighbor_loss(x, labels, reference=y, reference_labels=to_labels)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_every_instruction_set(isa):
    x, labels, y, to_labels = pair(130, 67)
    args = x.requires_grad_(), labels, y.requires_grad_(), to_labels, "cosine", 0.1, "exact", "none"
    check_values(neighbor_loss, args, length=130, outputs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(3)}, r"neighbor_loss: expected \[N, D\] and \[M, D\], got \[3\] and \[4, 5\]"),
        ({2: torch.zeros(4, 6)}, r"neighbor_loss: expected \[N, D\] and \[M, D\], got \[3, 5\] and \[4, 6\]"),
        ({1: torch.zeros(4)}, "neighbor_loss: one label per row"),
        ({3: torch.zeros(3)}, "neighbor_loss: one label per row"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    args = [*pair(3, 4), "euclidean", 1.0, "exact", "mean"]
    for place, value in change.items():
        args[place] = value
    with pytest.raises(ValueError, match=f"^{message}$"):
        neighbor_loss(*args)
