import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.testing import LAYOUTS, assert_close_to_oracle, features, with_layout


def batch(n, d, dtype=torch.float32, device="cpu", num_instances=2):
    feat_v, labels = features(n, d, num_instances=num_instances, dtype=dtype, device=device)
    feat_i, _ = features(n, d, num_instances=num_instances, dtype=dtype, device=device, seed=1)
    return feat_v, feat_i, labels


def by_hand(feat_v, feat_i, labels, margin, s, symmetric):
    """Spec ckda 4 in loops, with one row per center."""
    ids = labels.unique()
    v, i = (torch.stack([f[labels == k].mean(0) for k in ids]) for f in (feat_v, feat_i))

    def mean_hinge(anchors, own, reference, theirs):
        terms = []
        for anchor, label in zip(anchors, own, strict=True):
            dist = (anchor - reference).square().sum(1).clamp(min=1e-12).sqrt()
            pos, neg = dist[theirs == label], dist[theirs != label]
            terms.append((pos.max() - neg.min() + margin).relu() if len(neg) else 0 * pos.sum())
        return torch.stack(terms).mean()

    centers = mean_hinge(v, ids, i, ids) + mean_hinge(i, ids, v, ids)
    last = (feat_i, labels, v, ids) if symmetric else (v, ids, feat_i, labels)
    samples = mean_hinge(feat_v, labels, i, ids) + mean_hinge(*last)
    return 0.5 * ((1 - s) * centers + s * samples)


def test_spec_vector():
    """Spec ckda 14, vector 3."""
    r, q = torch.arange(8, dtype=torch.float64).unsqueeze(1), torch.arange(4, dtype=torch.float64)
    feat_v, feat_i, labels = torch.sin(0.5 * r + 0.3 * q), torch.cos(0.4 * r + 0.2 * q), torch.arange(8) // 2
    for sample_weight, wanted in ((0, 0.91410077), (1, 1.01381286)):
        loss = F.center_triplet_loss(feat_v, feat_i, labels, margin=0.1, sample_weight=sample_weight)
        assert_close(loss.item(), wanted, rtol=0, atol=5e-9)
    loss = F.triplet_loss(torch.cat((feat_v, feat_i)), labels.repeat(2), margin=0.1)
    assert_close(loss.item(), 1.28326944, rtol=0, atol=5e-9)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("n", "d", "num_instances"), [(20, 7, 1), (20, 7, 3), (20, 7, 20), (17, 130, 4), (128, 7, 5)])
def test_value_and_gradient(backend, symmetric, n, d, num_instances):
    feat_v, feat_i, labels = batch(n, d, device=backend.device, num_instances=num_instances)
    labels = labels * 2**40 - 9
    options = {"margin": 0.7, "sample_weight": 0.3, "symmetric": symmetric}
    rows = tuple(x.requires_grad_() for x in (feat_v, feat_i))
    wide = tuple(x.detach().double().cpu().requires_grad_() for x in rows)
    ours, oracle = F.center_triplet_loss(*rows, labels, **options), by_hand(*wide, labels.cpu(), 0.7, 0.3, symmetric)
    assert_close_to_oracle(ours, oracle, length=n)
    for one, other in zip(torch.autograd.grad(ours, rows), torch.autograd.grad(oracle, wide), strict=True):
        assert_close_to_oracle(one, other, length=n)


def test_a_center_counts_once(backend):
    """Copies of all rows of one identity change no center, so nothing between centers."""
    feat_v, feat_i, labels = batch(8, 5, device=backend.device)
    again = torch.cat((torch.arange(8), (labels.cpu() == 2).nonzero().squeeze(1))).to(backend.device)
    once = F.center_triplet_loss(feat_v, feat_i, labels, margin=3.0, sample_weight=0)
    twice = F.center_triplet_loss(feat_v[again], feat_i[again], labels[again], margin=3.0, sample_weight=0)
    assert_close(once, twice)


def test_a_bad_row_is_loud_and_stays_at_home(backend):
    """A visible row spoils what mines among visible centers; infrared centers mine and are mined on."""
    feat_v, feat_i, labels = batch(12, 5, device=backend.device)
    feat_v[4, 2] = torch.nan
    feat_v.requires_grad_()
    loss = F.center_triplet_loss(feat_v, feat_i, labels, margin=9.0)
    loss.backward()
    assert loss.isnan()
    others = labels != labels[4]
    assert feat_v.grad[others].isfinite().all()
    assert (feat_v.grad[others] != 0).any()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_without_negatives(backend, n):
    feat = torch.randn(n, 3, device=backend.device, requires_grad=True)
    loss = F.center_triplet_loss(feat, feat + 1, torch.zeros(n, dtype=torch.int64, device=backend.device))
    loss.backward()
    assert loss == 0
    assert (feat.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_types_and_strides(backend, dtype, layout):
    *rows, labels = batch(16, 19, dtype, backend.device)
    rows = tuple(with_layout(x, layout).requires_grad_() for x in rows)
    wide = tuple(x.detach().double().requires_grad_() for x in rows)
    ours, oracle = (F.center_triplet_loss(*pair, labels.int(), margin=1.0) for pair in (rows, wide))
    assert_close_to_oracle(ours, oracle, length=19)
    for one, other in zip(torch.autograd.grad(ours, rows), torch.autograd.grad(oracle, wide), strict=True):
        assert one.dtype == dtype
        assert_close_to_oracle(one, other, length=19)


def test_one_graph_and_equal_bits(with_threads):
    compiled = torch.compile(F.center_triplet_loss, backend="aot_eager", fullgraph=True)
    for n in (64, 300):
        *rows, labels = batch(n, 200)
        rows = tuple(x.requires_grad_() for x in rows)
        grads = []
        for threads, function in ((1, F.center_triplet_loss), (2, F.center_triplet_loss), (2, compiled)):
            with_threads(threads)
            grads.append(torch.autograd.grad(function(*rows, labels, margin=1.0), rows))
        for one, two, traced in zip(*grads, strict=True):
            assert torch.equal(one, two)
            assert_close(one, traced)
