import itertools
from pathlib import Path

import numpy as np
import pytest
import retrieval_oracle as oracle
import torch

from vifast.retrieval import drop_in

GOLDEN = Path(__file__).parents[1] / "golden"
CAMS = {"eval_sysu": "sysu", "eval_llcm": "same_id_camera", "evaluate_rank": "same_id_camera"}


def draw(rng, ties):
    """A matrix with labels; somebody in the queries is in no gallery."""
    q, g = rng.integers(1, 9), rng.integers(1, 40)
    dist = rng.integers(0, 4, (q, g)) / 4 if ties else rng.random((q, g))
    labels = (rng.integers(0, 5, q), rng.integers(0, 4, g), rng.integers(1, 4, q), rng.integers(1, 4, g))
    return dist.astype(rng.choice(["f4", "f8"])), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("name", "cmc"), [("eval_sysu", "identity"), ("eval_llcm", "identity"), ("eval_regdb", "plain")]
)
def test_three_numbers_of_a_protocol(name, cmc, ties):
    rng = np.random.default_rng([len(name), ties])
    for case in range(150):
        dist, labels = draw(rng, ties)
        max_rank = int(rng.integers(1, 25))
        length = min(max_rank, dist.shape[1])
        expected = oracle.evaluate(dist.tolist(), *labels, CAMS.get(name, "none"), cmc, length)
        arguments = (dist, *(labels if name in CAMS else labels[:2]))
        if expected is None:
            with pytest.raises(ValueError, match="found none"):
                getattr(drop_in, name)(*arguments, max_rank)
            continue
        if case % 3 == 1:
            arguments = (torch.from_numpy(dist), *(label.tolist() for label in arguments[1:]))
        curve, mean_ap, mean_inp = getattr(drop_in, name)(*arguments, max_rank=max_rank)
        assert isinstance(curve, np.ndarray)
        assert (curve.dtype, curve.shape) == (np.float32, (length,))
        np.testing.assert_array_equal(curve, np.float32(expected[0]))
        assert mean_ap == pytest.approx(np.nanmean(expected[1]), abs=1e-15)
        assert mean_inp == pytest.approx(np.nanmean(expected[2]), abs=1e-15)
        assert type(mean_ap) is type(mean_inp) is float


def test_golden_matrix():
    with np.load(GOLDEN / "idkl_eval_agw.npz") as g:
        ids, cams, other = (g["q_id"], g["g_id"]), (g["q_cam"], g["g_cam"]), (g["llcm_q_cam"], g["llcm_g_cam"])
        got = {
            "sysu": drop_in.eval_sysu(g["dist"], *ids, *cams),
            "regdb": drop_in.eval_regdb(g["dist"], *ids),
            "llcm": drop_in.eval_llcm(g["dist"], *ids, *other),
        }
        for prefix, (curve, mean_ap, mean_inp) in got.items():
            np.testing.assert_allclose(curve, g[f"{prefix}_cmc"], atol=1e-7)  # theirs is summed in float32
            assert mean_ap == pytest.approx(float(g[f"{prefix}_map"]), abs=1e-12)
            assert mean_inp == pytest.approx(float(g[f"{prefix}_minp"]), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_evaluate_rank(ties):
    rng = np.random.default_rng([7, ties])
    for _ in range(150):
        dist, labels = draw(rng, ties)
        length = min(50, dist.shape[1])
        expected = oracle.evaluate(dist.tolist(), *labels, "same_id_camera", "plain", length)
        if expected is None:
            with pytest.raises(ValueError, match="found none"):
                drop_in.evaluate_rank(dist, *labels)
            continue
        curve, mean_ap = drop_in.evaluate_rank(dist, *labels, max_rank=50, use_metric_cuhk03=False, use_cython=False)
        np.testing.assert_array_equal(curve, np.float32(expected[0]))
        assert mean_ap == pytest.approx(np.nanmean(expected[1]), abs=1e-15)
        curve, all_ap, all_inp = drop_in.evaluate_rank_fastreid(dist, *labels)
        np.testing.assert_array_equal(curve, np.float32(expected[0]))
        np.testing.assert_array_equal(all_ap, expected[1][~np.isnan(expected[1])])
        np.testing.assert_array_equal(all_inp, expected[2][~np.isnan(expected[2])])


def every_gallery(row, query_id, query_cam, g_ids, g_cams, topk):
    """Mean curve over all galleries that have one kept image of each identity."""
    kept = [j for j in range(len(row)) if not (g_ids[j] == query_id and g_cams[j] == query_cam)]
    groups = [[j for j in kept if g_ids[j] == identity] for identity in sorted({g_ids[j] for j in kept})]
    curves = []
    for gallery in itertools.product(*groups):
        order = sorted(gallery, key=lambda j: (row[j], j))
        place = [g_ids[j] for j in order].index(query_id)
        curves.append([place < k for k in range(1, topk + 1)])
    return np.mean(curves, 0)


@pytest.mark.parametrize("ties", [False, True])
def test_the_expectation_of_cuhk03s_metric(ties):
    rng = np.random.default_rng([8, ties])
    for _ in range(40):
        g = rng.integers(3, 12)
        dist = rng.integers(0, 3, (4, g)) / 4 if ties else rng.random((4, g))
        q_ids, g_ids, q_cams, g_cams = (rng.integers(0, n, m) for n, m in ((4, 4), (4, g), (3, 4), (3, g)))
        topk = int(rng.integers(1, g + 1))
        kept = (g_ids == q_ids[:, None]) & (g_cams != q_cams[:, None])
        if not kept.any():
            continue
        expected = np.mean(
            [
                every_gallery(dist[q].tolist(), q_ids[q], q_cams[q], g_ids.tolist(), g_cams.tolist(), topk)
                for q in np.flatnonzero(kept.any(1))
            ],
            0,
        )
        curve, mean_ap = drop_in.evaluate_rank(dist, q_ids, g_ids, q_cams, g_cams, topk, use_metric_cuhk03=True)
        np.testing.assert_allclose(curve, expected, atol=1e-6)
        assert mean_ap == drop_in.evaluate_rank(dist, q_ids, g_ids, q_cams, g_cams, topk)[1]


DIST, IDS = np.zeros((2, 3)), ([1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((DIST.tolist(), *IDS), TypeError, "distmat: expected a tensor or an array"),
        ((DIST.astype(int), *IDS), TypeError, "distmat: expected a floating-point"),
        ((DIST[0], *IDS), ValueError, "distmat: expected shape"),
        ((DIST[:, :0], IDS[0], []), TypeError, "g_pids: expected an integer"),
        ((DIST, IDS[0], IDS[0]), ValueError, r"g_pids: expected shape \[3\], one per row of distmat"),
        ((DIST, [1.5, 2], IDS[1]), TypeError, "q_pids: expected an integer tensor"),
        ((DIST, *IDS, 0), ValueError, "max_rank: expected at least 1"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        drop_in.eval_regdb(*arguments)
    with pytest.raises(ValueError, match="q_camids: expected shape"):
        drop_in.eval_sysu(DIST, *IDS, [3], [1, 1, 2])
