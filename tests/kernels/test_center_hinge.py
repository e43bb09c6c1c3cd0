from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.center_hinge import center_hinge
from vifast.testing import LAYOUTS, assert_close_to_oracle, check_op, check_values, features, with_layout

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_iploss.npz"


def batch(n, d, device="cpu", dtype=torch.float32):
    raw, labels = features(n, d, device=device, dtype=dtype)
    purified, _ = features(n, d, device=device, dtype=dtype, seed=1)
    modality = torch.arange(n, device=device) % 2
    return raw, purified, labels, modality


def hinge_by_hand(raw, purified, labels, modality, margin):
    """Spec idkl 3 in a loop over identities."""
    terms = []
    for identity in labels.unique():
        sides = [(labels == identity) & (modality == m) for m in (0, 1)]
        if all(side.any() for side in sides):
            d_raw, d_pur = ((f[sides[0]].mean(0) - f[sides[1]].mean(0) + 1e-6).norm() for f in (raw, purified))
            terms.append((d_pur - d_raw + margin).relu())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("case", "abc")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(case, dtype, backend):
    with np.load(GOLDEN) as golden:
        names = "feat_raw feat_pur labels modality margin loss_centroid grad_feat_raw grad_feat_pur"
        raw, pur, labels, modality, margin, loss, *grads = (
            torch.from_numpy(golden[f"{case}__{name}"]).to(backend.device) for name in names.split()
        )
    raw, pur = (x.to(dtype).requires_grad_() for x in (raw, pur))
    ours = F.center_hinge(raw, pur, labels, modality, margin=margin.item())
    ours.backward()
    for one, wanted in ((ours, loss), (raw.grad, grads[0]), (pur.grad, grads[1])):
        if dtype == torch.float64:
            assert_close(one, wanted, rtol=1e-9, atol=1e-12)
        else:
            assert_close_to_oracle(one, wanted, length=120)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_formula(backend, margin):
    raw, purified, labels, modality = batch(31, 5, backend.device)
    modality[:9] = 0  # some identities lose a modality
    labels = labels * 2**40 - 3
    ours = F.center_hinge(raw, purified, labels, modality, margin=margin)
    wanted = hinge_by_hand(raw.double(), purified.double(), labels, modality, margin)
    assert_close_to_oracle(ours, wanted, length=31)


def test_an_identity_counts_once(backend):
    raw, purified, labels, modality = (x.to(backend.device) for x in batch(12, 4))
    again = torch.cat((torch.arange(12), (labels == labels[0]).cpu().nonzero().squeeze(1))).to(backend.device)
    once = F.center_hinge(raw, purified, labels, modality, margin=3.0)
    assert_close(F.center_hinge(raw[again], purified[again], labels[again], modality[again], margin=3.0), once)


def test_rows_of_other_modalities_are_ignored(backend):
    raw, purified, labels, modality = batch(12, 4, backend.device)
    modality[[1, 5]] = torch.tensor([2, -1], device=backend.device)
    raw[1] = torch.nan
    keep = torch.tensor([0, 2, 3, 4, 6, 7, 8, 9, 10, 11], device=backend.device)
    raw.requires_grad_()
    ours = F.center_hinge(raw, purified, labels, modality, margin=1.0)
    assert_close(ours, F.center_hinge(raw[keep], purified[keep], labels[keep], modality[keep], margin=1.0))
    ours.backward()
    assert (raw.grad[[1, 5]] == 0).all()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("modality", [[0, 0, 0], [1, 1, 1], [3, 3, 3]])
def test_no_identity_with_both(backend, modality):
    raw = torch.randn(3, 2, device=backend.device, requires_grad=True)
    loss = F.center_hinge(raw, raw.detach(), torch.zeros(3).long().to(backend.device),
                          torch.tensor(modality, device=backend.device), margin=1.0)  # fmt: skip
    loss.backward()
    assert loss == 0
    assert (raw.grad == 0).all()


def test_zero_distance_has_zero_gradient(backend):
    raw = torch.tensor([[0.0], [1.0]], device=backend.device, requires_grad=True)
    same = torch.tensor([[0.0], [1e-6]], device=backend.device, requires_grad=True)  # cancels the published offset
    labels, modality = torch.tensor([[4, 4], [0, 1]], device=backend.device)
    F.center_hinge(raw, same, labels, modality, margin=5.0).backward()
    assert (same.grad == 0).all()
    assert_close(raw.grad.cpu(), torch.tensor([[1.0], [-1.0]]))


def test_a_bad_row_is_loud_and_stays_at_home(backend):
    raw, purified, labels, modality = batch(16, 4, backend.device)
    purified[3, 1] = torch.nan
    raw.requires_grad_()
    loss = F.center_hinge(raw, purified, labels, modality, margin=2.0)
    loss.backward()
    assert loss.isnan()
    assert raw.grad[labels != labels[3]].isfinite().all()


def test_op():
    def make_args(n):
        raw, purified, labels, modality = batch(n, 7)
        return raw.requires_grad_(), purified.requires_grad_(), labels, modality, 0.5

    check_op(center_hinge, make_args, length=9, outputs=1)


@pytest.mark.parametrize(("n", "d"), [(0, 3), (1, 5), (2, 1), (37, 70), (12, 2100), (120, 300), (520, 6)])
def test_values_on_every_back_end(backend, n, d):
    if backend.name == "triton" and n * d > 37 * 700:
        pytest.skip("slow in the interpreter")
    raw, purified, labels, modality = batch(n, d, backend.device)
    args = raw.requires_grad_(), purified.requires_grad_(), labels, modality, 0.25
    check_values(center_hinge, args, length=max(n, d), outputs=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_types_and_strides(backend, dtype, layout):
    raw, purified, labels, modality = batch(24, 19, backend.device, dtype)
    raw, purified = (with_layout(x, layout).requires_grad_() for x in (raw, purified))
    args = raw, purified, labels.int(), modality.to(torch.uint8)
    ours = F.center_hinge(*args, margin=1.0)
    wide = tuple(x.detach().double().requires_grad_() for x in (raw, purified))
    oracle = F.center_hinge(*wide, labels, modality, margin=1.0)
    assert_close_to_oracle(ours, oracle, length=24)
    for one, other in zip(torch.autograd.grad(ours, (raw, purified)), torch.autograd.grad(oracle, wide), strict=True):
        assert one.dtype == dtype
        assert_close_to_oracle(one, other, length=24)


def test_bits_do_not_depend_on_threads(with_threads):
    raw, purified, labels, modality = batch(400, 900)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        rows = raw.clone().requires_grad_()
        loss = F.center_hinge(rows, purified, labels, modality, margin=1.0)
        loss.backward()
        results.append((loss.detach(), rows.grad))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_every_instruction_set(isa):
    raw, purified, labels, modality = batch(60, 67)
    args = raw.requires_grad_(), purified.requires_grad_(), labels, modality, 0.25
    check_values(center_hinge, args, length=67, outputs=1)


def test_gradcheck():
    raw, purified, labels, modality = batch(9, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, y: F.center_hinge(x, y, labels, modality, margin=1.0),
        (raw.requires_grad_(), purified.requires_grad_()),
    )
