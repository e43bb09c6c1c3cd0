import numpy as np
import pytest
import torch

from vifast.retrieval import evaluate, evaluate_trials, products
from vifast.retrieval.metrics import fold_products
from vifast.retrieval.ranking import RankFold
from vifast.retrieval.trials import TrialFold

MODES = ("none", "same_camera", "same_id_camera", "sysu")


def same(a, b):
    """Two results, bit for bit."""
    assert torch.equal(a.cmc, b.cmc)
    assert (a.mean_ap, a.mean_inp, a.num_valid) == (b.mean_ap, b.mean_inp, b.num_valid)
    np.testing.assert_array_equal(a.ap, b.ap)
    np.testing.assert_array_equal(a.inp, b.inp)


def case(rng, q, g, count, ids=5, levels=3, dims=3, dtype=torch.float32):
    """Features whose products do not round, so that ties are exact and many where ``levels`` are few."""
    feat = [torch.from_numpy(rng.integers(-levels, levels + 1, (n, dims))).to(dtype) for n in (q, g)]
    labels = [rng.integers(0, ids, n) for n in (q, g)] + [rng.integers(1, 4, n) for n in (q, g)]
    galleries = [rng.permutation(g)[: rng.integers(max(1, g // 3), g + 1)] for _ in range(count)]
    return *feat, labels, galleries


def one_by_one(query, gallery, labels, galleries, **options):
    q_ids, g_ids, q_cams, g_cams = labels
    rows = [np.sort(part) for part in galleries]
    return [evaluate(query, gallery[part], q_ids, g_ids[part], q_cams, g_cams[part], **options) for part in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cmc", ["plain", "identity"])
@pytest.mark.parametrize("exclude", MODES)
def test_the_bits_of_one_evaluation_a_trial(exclude, cmc, dtype):
    rng = np.random.default_rng([MODES.index(exclude), cmc == "plain", dtype.itemsize])
    for count in (1, 2, 10, 16, 17, 35):
        query, gallery, labels, galleries = case(rng, 20, 90, count, levels=int(rng.choice([1, 3, 1000])), dtype=dtype)
        options = {"metric": "dot", "exclude": exclude, "cmc": cmc, "topk": int(rng.integers(1, 9))}
        got = evaluate_trials(query, gallery, *labels, trials=galleries, **options)
        for result, expected in zip(got, one_by_one(query, gallery, labels, galleries, **options), strict=True):
            same(result, expected)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "sqeuclidean"])
def test_metrics_that_round(metric):
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(33, 40, generator=generator), torch.randn(200, 40, generator=generator)
    labels = [np.arange(33) % 6, np.arange(200) % 6, np.arange(33) % 4, np.arange(200) % 4]
    galleries = [np.random.default_rng(t).permutation(200)[:70] for t in range(10)]
    options = {"metric": metric, "exclude": "same_camera", "cmc": "identity"}
    got = evaluate_trials(query, gallery, *labels, trials=galleries, **options)
    for result, expected in zip(got, one_by_one(query, gallery, labels, galleries, **options), strict=True):
        same(result, expected)


def test_every_instruction_set_and_many_positives(isa):
    rng = np.random.default_rng(1)
    query, gallery, labels, galleries = case(rng, 5, 1500, 10, ids=2, levels=40)  # up to 750 positives a query
    options = {"metric": "dot", "exclude": "sysu", "cmc": "identity"}
    got = evaluate_trials(query, gallery, *labels, trials=galleries, **options)
    for result, expected in zip(got, one_by_one(query, gallery, labels, galleries, **options), strict=True):
        same(result, expected)


def test_more_rows_than_a_lane_counts():
    rng = np.random.default_rng(2)
    query = torch.tensor([[1.0]])
    gallery = -torch.arange(70000.0)[:, None]
    ids = np.ones(70000, np.int64)
    ids[-1] = 7  # the farthest
    rows = [np.arange(70000), np.append(rng.permutation(69999)[:66000], 69999)]
    got = evaluate_trials(query, gallery, np.array([7]), ids, metric="dot", trials=rows)
    assert [result.ap.item() for result in got] == [1 / 70000, 1 / 66001]


def test_neither_threads_nor_blocks_change_a_bit(with_threads, monkeypatch):
    rng = np.random.default_rng(3)
    query, gallery, labels, galleries = case(rng, 70, 100, 10)

    def run():
        return evaluate_trials(query, gallery, *labels, trials=galleries, exclude="sysu", cmc="identity")

    one, two = (with_threads(n, run) for n in (1, 2))
    monkeypatch.setattr(products, "LEAST_ROWS", 7)
    monkeypatch.setattr(products, "WORKSPACE", 1)
    for a, b, c in zip(one, two, run(), strict=True):
        same(a, b)
        same(a, c)


def test_order_of_rows_and_rows_of_no_trial_do_not_matter():
    rng = np.random.default_rng(4)
    query, gallery, labels, galleries = case(rng, 15, 60, 4, levels=1)
    galleries = [part[part < 50] for part in galleries]
    got = evaluate_trials(query, gallery, *labels, trials=galleries, metric="dot")
    shuffled = [torch.from_numpy(np.sort(part)[::-1].copy()) for part in galleries]
    for a, b in zip(got, evaluate_trials(query, gallery, *labels, trials=shuffled, metric="dot"), strict=True):
        same(a, b)
    gallery[50:] = 7
    for a, b in zip(got, evaluate_trials(query, gallery, *labels, trials=galleries, metric="dot"), strict=True):
        same(a, b)


def test_counting_each_trial_by_itself_as_a_gpu_does(monkeypatch):
    rng = np.random.default_rng(5)
    query, gallery, labels, galleries = case(rng, 30, 80, 10)
    for exclude in MODES:
        options = (exclude, "identity", 9)
        columns = [torch.from_numpy(np.sort(part)) for part in galleries]
        states = [TrialFold(RankFold(30, 80, *labels, *options), columns) for _ in range(2)]
        fold_products(query, gallery, "cosine", states[0])
        expected = states[0].metrics("query")
        with monkeypatch.context() as patch:
            patch.setattr(TrialFold, "fold", TrialFold._fold_each)
            fold_products(query, gallery, "cosine", states[1])
        for a, b in zip(states[1].metrics("query"), expected, strict=True):
            same(a, b)


@pytest.mark.gpu
def test_on_a_gpu():
    rng = np.random.default_rng(6)
    query, gallery, labels, galleries = case(rng, 40, 300, 10)
    options = {"metric": "dot", "exclude": "sysu", "cmc": "identity"}
    expected = evaluate_trials(query, gallery, *labels, trials=galleries, **options)
    got = evaluate_trials(query.cuda(), gallery.cuda(), *labels, trials=galleries, **options)
    for a, b in zip(got, expected, strict=True):
        same(a, b)


def test_a_nan_is_blamed_on_its_row():
    dist = torch.zeros(3, 4)
    dist[2, 1] = torch.nan
    ids = torch.tensor([1, 1, 1, 1])
    whole = RankFold(3, 4, ids[:3], ids, None, None, "none", "plain", 5)
    state = TrialFold(whole, [torch.tensor([0]), torch.tensor([1])])
    state.fold(dist, 0)
    with pytest.raises(ValueError, match="dist: row 2 holds a NaN"):
        state.metrics("dist")


def test_no_valid_query_in_a_trial():
    feat, ids = torch.eye(2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="query_ids: expected a query with a positive"):
        evaluate_trials(feat[:1], feat, ids[:1], ids, trials=[[0], [1]])
