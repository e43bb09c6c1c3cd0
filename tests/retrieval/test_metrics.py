import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import retrieval_oracle as oracle
import torch

from vifast.retrieval import evaluate, evaluate_distance
from vifast.retrieval.products import WORKSPACE

HERE = Path(__file__).parent  # not the root, whose bare package would hide an installed one
GOLDEN = HERE.parent / "golden"
MODES = ("none", "same_camera", "same_id_camera", "sysu")


def same(a, b):
    """Two results, bit for bit."""
    assert torch.equal(a.cmc, b.cmc)
    assert (a.mean_ap, a.mean_inp, a.num_valid) == (b.mean_ap, b.mean_inp, b.num_valid)
    np.testing.assert_array_equal(a.ap, b.ap)
    np.testing.assert_array_equal(a.inp, b.inp)


def test_hand_made_table():
    #                 ids   7    5    7    6    5
    dist = torch.tensor([[0.4, 0.1, 0.2, 0.3, 0.5],   # order 5 7 6 7 5: ranks 2, 4
                         [0.4, 0.1, 0.2, 0.3, 0.5]])  # fmt: skip
    result = evaluate_distance(dist, torch.tensor([7, 9]), torch.tensor([7, 5, 7, 6, 5]), topk=7)
    assert result.cmc.tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert result.num_valid == 1
    assert result.ap[0].item() == pytest.approx((1 / 2 + 2 / 4) / 2, abs=1e-15)
    assert result.inp[0].item() == 2 / 4
    assert result.ap[1].isnan()
    assert result.inp[1].isnan()
    assert (result.mean_ap, result.mean_inp) == (result.ap[0].item(), result.inp[0].item())


def test_identity_cmc_counts_each_identity_once():
    dist = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.4]])
    ids = torch.tensor([7, 5, 5, 6, 5])
    plain = evaluate_distance(dist, torch.tensor([7]), ids, topk=5)
    identity = evaluate_distance(dist, torch.tensor([7]), ids, cmc="identity", topk=5)
    assert plain.cmc.tolist() == [0, 0, 0, 0, 1]
    assert identity.cmc.tolist() == [0, 0, 1, 1, 1]


def test_ties_go_to_the_lower_index():
    dist = torch.zeros(2, 4)
    result = evaluate_distance(dist, torch.tensor([1, 2]), torch.tensor([1, 2, 1, 2]), topk=2)
    assert result.ap.tolist() == [(1 + 2 / 3) / 2, (1 / 2 + 2 / 4) / 2]
    assert result.cmc.tolist() == [0.5, 1]


def test_infinities_and_signed_zeros_are_ordinary_values():
    dist = torch.tensor([[math.inf, math.inf, -math.inf, 0.0, -0.0]])
    result = evaluate_distance(dist, torch.tensor([1]), torch.tensor([2, 1, 1, 2, 1]))
    assert result.ap.item() == (1 / 1 + 2 / 3 + 3 / 5) / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cmc", ["plain", "identity"])
@pytest.mark.parametrize("exclude", MODES)
def test_against_the_oracle(exclude, cmc, dtype):
    rng = np.random.default_rng([MODES.index(exclude), cmc == "plain", dtype.itemsize])
    for case in range(60):
        q, g = rng.integers(1, 8), rng.integers(1, 90 if case % 3 else 12)
        levels = rng.choice([2, 5, 1000])
        dist = torch.from_numpy(rng.integers(-levels, levels, (q, g)) / 8).to(dtype)
        ids, other = rng.integers(0, 4, q), rng.integers(0, 4, g)
        cams, other_cams = rng.integers(1, 4, q), rng.integers(1, 4, g)
        topk = int(rng.integers(1, 25))
        expected = oracle.evaluate(dist.tolist(), ids, other, cams, other_cams, exclude, cmc, topk)
        arguments = (dist, ids.astype(np.int16), other.astype(np.int16), cams, other_cams)
        if expected is None:
            with pytest.raises(ValueError, match="query_ids"):
                evaluate_distance(*arguments, exclude=exclude, cmc=cmc, topk=topk)
            continue
        result = evaluate_distance(*arguments, exclude=exclude, cmc=cmc, topk=topk)
        np.testing.assert_array_equal(result.cmc, expected[0])
        np.testing.assert_array_equal(result.ap, expected[1])
        np.testing.assert_array_equal(result.inp, expected[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ties", [False, True])
def test_many_positives_take_the_other_path_to_the_same_numbers(isa, dtype, ties):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2, 1000)  # about 330 positives a query, counted through their histogram
    cams = rng.integers(0, 3, 1000)
    dist = torch.from_numpy(rng.integers(0, 20 if ties else 10**6, (4, 1000)) / 7).to(dtype)
    expected = oracle.evaluate(dist.tolist(), ids[:4], ids, cams[:4], cams, "same_camera", "identity", 20)
    result = evaluate_distance(dist, ids[:4], ids, cams[:4], cams, exclude="same_camera", cmc="identity")
    np.testing.assert_array_equal(result.ap, expected[1])
    np.testing.assert_array_equal(result.inp, expected[2])
    np.testing.assert_array_equal(result.cmc, expected[0])


def test_every_instruction_set_counts_the_same(isa):
    rng = np.random.default_rng(1)
    ids, other = rng.integers(0, 30, 50), rng.integers(0, 30, 777)
    dist = rng.integers(0, 500, (50, 777)).astype(np.float32)
    expected = oracle.evaluate(dist.tolist(), ids, other, ids * 0, other * 0, "none", "plain", 20)
    np.testing.assert_array_equal(evaluate_distance(dist, ids, other).ap, expected[1])


def test_float64_is_not_rounded():
    dist = torch.tensor([[1.0, 1.0 - 1e-12]], dtype=torch.float64)
    assert evaluate_distance(dist, torch.tensor([1]), torch.tensor([1, 2])).ap.item() == 0.5
    assert evaluate_distance(dist.float(), torch.tensor([1]), torch.tensor([1, 2])).ap.item() == 1


def test_golden_agw():
    with np.load(GOLDEN / "idkl_eval_agw.npz") as g:
        for prefix, cams, exclude, cmc in (
            ("sysu", ("q_cam", "g_cam"), "sysu", "identity"),
            ("regdb", ("q_cam", "g_cam"), "none", "plain"),
            ("llcm", ("llcm_q_cam", "llcm_g_cam"), "same_id_camera", "identity"),
        ):
            result = evaluate_distance(
                g["dist"], g["q_id"], g["g_id"], *(g[name] for name in cams), exclude=exclude, cmc=cmc
            )
            assert result.mean_ap == pytest.approx(float(g[f"{prefix}_map"]), abs=1e-12)
            assert result.mean_inp == pytest.approx(float(g[f"{prefix}_minp"]), abs=1e-12)
            np.testing.assert_allclose(result.cmc, g[f"{prefix}_cmc"], atol=1e-7)  # theirs is summed in float32


def sysu_gallery(g, cams, shots, trial):
    """Rows of g_feat that a trial draws: the first `shots` images of row `trial` of each permutation (idkl 9, 10)."""
    row_of = {key: row for row, key in enumerate(zip(g["g_cam"], g["g_id"], g["g_img_index"], strict=True))}
    rows, at = [], 0
    for cam, identity, n in g["perm_rows"].tolist():
        permutation = g["perm_vals"][at : at + 10 * n].reshape(10, n)
        at += 10 * n
        if cam in cams:
            rows += [row_of[cam, identity, image] for image in permutation[trial, :shots].tolist()]
    return np.array(rows)


def test_golden_sysu_trial_matrix():
    with np.load(GOLDEN / "idkl_eval_sysu.npz") as file:
        g = dict(file)
    rows = g["trial0_gallery_rows_1shot"]
    np.testing.assert_array_equal(sorted(sysu_gallery(g, (1, 2, 4, 5), 1, 0)), sorted(rows))
    result = evaluate_distance(
        g["trial0_dist"], g["q_id"], g["g_id"][rows], g["q_cam"], g["g_cam"][rows],
        exclude="sysu", cmc="identity", topk=len(g["trial0_cmc_1shot_all"]),
    )  # fmt: skip
    assert result.mean_ap == pytest.approx(float(g["trial0_map_1shot_all"]), abs=1e-6)
    np.testing.assert_allclose(result.cmc, g["trial0_cmc_1shot_all"], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("direction", ["ir2vis", "vis2ir"])
def test_golden_regdb_llcm(direction, dtype):
    with np.load(GOLDEN / "idkl_eval_regdb_llcm.npz") as file:
        g = dict(file)
    sides = [(g["q_feat"].astype(dtype), g["q_id"]), (g["g_feat"].astype(dtype), g["g_id"])]
    (query, ids), (gallery, other) = sides if direction == "ir2vis" else sides[::-1]
    for metric in ("sqeuclidean", "euclidean"):
        result = evaluate(query, gallery, ids, other, metric=metric, cmc="identity", topk=30)
        got = [100 * result.mean_ap, *(100 * result.cmc[[0, 4, 9, 19]]).tolist()]
        for name in ("regdb", "llcm"):
            tolerance = 1e-10 if dtype == np.float64 else 1e-4
            np.testing.assert_allclose(got, g[f"{name}_{direction}_plain"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "sqeuclidean", "dot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_features_give_what_their_distances_give(metric, dtype):
    generator = torch.Generator().manual_seed(3)
    query = torch.randint(-3, 4, (37, 4), generator=generator).to(dtype)
    gallery = torch.randint(-3, 4, (90, 4), generator=generator).to(dtype)
    query[0], gallery[5] = 0, 0
    ids, other = torch.arange(37) % 7, torch.arange(90) % 7
    a, b = query.double(), gallery.double()
    if metric == "cosine":
        a, b = (torch.nn.functional.normalize(x.to(torch.promote_types(dtype, torch.float32))) for x in (a, b))
        dist = -(a @ b.T)
    elif metric == "dot":
        dist = -(a @ b.T)
    else:
        dist = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square().round()
    got = evaluate(query, gallery, ids, other, metric=metric, cmc="identity")
    expected = evaluate_distance(dist, ids, other, cmc="identity")
    if metric in ("cosine", "euclidean", "sqeuclidean"):  # ties of equal angles, and of rounded means, are not exact
        assert got.mean_ap == pytest.approx(expected.mean_ap, abs=0.01)
    else:
        same(got, expected)


def test_a_common_offset_changes_no_euclidean_ranking():
    generator = torch.Generator().manual_seed(4)
    query, gallery = torch.randn(20, 32, generator=generator), torch.randn(60, 32, generator=generator)
    ids, other = torch.arange(20) % 5, torch.arange(60) % 5
    near = evaluate(query, gallery, ids, other, metric="euclidean")
    far = evaluate(query + 1024, gallery + 1024, ids, other, metric="euclidean")
    assert far.mean_ap == pytest.approx(near.mean_ap, abs=1e-3)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("shape", [(1, 1, 700), (1, 40, 1500), (40, 1, 1500), (130, 210, 2048), (3, 5, 2)])
def test_same_bits_for_any_number_of_threads(with_threads, metric, shape):
    generator = torch.Generator().manual_seed(5)
    q, g, d = shape
    query, gallery = torch.randn(q, d, generator=generator), torch.randn(g, d, generator=generator)
    ids, other = torch.zeros(q, dtype=torch.int64), (torch.arange(g) % 3 > 0).long() * (torch.arange(g) % 2)
    one, two = (with_threads(n, lambda: evaluate(query, gallery, ids, other, metric=metric)) for n in (1, 2))
    same(one, two)


def test_blocks_of_queries_join_up(monkeypatch):
    generator = torch.Generator().manual_seed(6)
    query, gallery = torch.randint(-2, 3, (50, 6), generator=generator).float(), torch.randn(31, 6, generator=generator)
    ids, other = torch.arange(50) % 4, torch.arange(31) % 4
    whole = evaluate(query, gallery, ids, other)
    monkeypatch.setattr("vifast.retrieval.products.WORKSPACE", 31 * 4 * 7)
    monkeypatch.setattr("vifast.retrieval.products.LEAST_ROWS", 2)
    same(evaluate(query, gallery, ids, other), whole)
    dist = torch.randn(50, 31, generator=generator)
    same(evaluate_distance(dist.T.contiguous().T, ids, other), evaluate_distance(dist, ids, other))


def test_arrays_and_odd_layouts():
    rng = np.random.default_rng(7)
    dist = rng.standard_normal((6, 9)).astype(np.float32)
    ids, other = np.arange(6) % 3, np.arange(9) % 3
    expected = evaluate_distance(dist, ids, other)
    read_only = dist.copy()
    read_only.flags.writeable = False
    for variant in (
        torch.from_numpy(dist),
        read_only,
        np.asfortranarray(dist),
        np.ascontiguousarray(dist[:, ::-1])[:, ::-1],
    ):
        same(evaluate_distance(variant, ids, torch.from_numpy(other)), expected)
    for kind in (np.uint8, np.int8, np.uint16, np.int32, np.uint64):
        same(evaluate_distance(dist, ids.astype(kind), other), expected)
    same(evaluate_distance(torch.from_numpy(dist).requires_grad_(), ids * 2**40, other * 2**40), expected)
    same(evaluate(dist, dist, ids, ids), evaluate(torch.from_numpy(dist), torch.from_numpy(dist), ids, ids))


GOOD = {
    "query": torch.ones(3, 4), "query_ids": torch.arange(3), "query_cams": torch.arange(3),
    "gallery": torch.ones(5, 4), "gallery_ids": torch.arange(5), "gallery_cams": torch.arange(5),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"query": [[1.0]]}, TypeError, "query: expected a tensor"),
        ({"query": torch.ones(3, 4, dtype=torch.int64)}, TypeError, "query: expected a floating"),
        ({"query": torch.ones(3)}, ValueError, r"query: .*\[3\]"),
        ({"query": torch.ones(3, 5)}, ValueError, "gallery: expected 5 columns"),
        ({"query": torch.ones(3, 4).double()}, TypeError, "gallery: expected torch.float64"),
        ({"query": torch.ones(3, 4, device="meta")}, ValueError, "gallery: expected device meta"),
        ({"query": torch.ones(0, 4), "query_ids": torch.arange(0)}, ValueError, "query: expected at least one row"),
        (
            {
                "gallery": torch.ones(9000, 4).index_fill_(0, torch.tensor(8500), math.inf),
                "gallery_ids": torch.arange(9000),
                "gallery_cams": None,
            },
            ValueError,
            "gallery: row 8500 is not finite",
        ),
        (
            {"gallery": torch.ones(0, 4), "gallery_ids": torch.arange(0)},
            ValueError,
            "gallery: expected at least one row",
        ),
        ({"query": torch.ones(3, 0), "gallery": torch.ones(5, 0)}, ValueError, "query: expected at least one row"),
        ({"query": torch.tensor([[1.0] * 4, [math.nan] * 4, [1.0] * 4])}, ValueError, "query: row 1 is not finite"),
        ({"gallery": torch.tensor([[1.0, 1, 1, math.inf]] * 5)}, ValueError, "gallery: row 0 is not finite"),
        ({"query_ids": torch.arange(4)}, ValueError, r"query_ids: expected shape \[3\]"),
        ({"gallery_ids": torch.arange(5.0)}, TypeError, "gallery_ids: expected an integer"),
        ({"gallery_ids": "ids"}, TypeError, "gallery_ids: expected a tensor"),
        ({"gallery_ids": np.array(["a"] * 5)}, TypeError, "gallery_ids: expected a numeric array"),
        ({"gallery_ids": torch.arange(5) + 10}, ValueError, "query_ids: expected a query with a positive"),
        ({"query_cams": torch.arange(2)}, ValueError, "query_cams: expected shape"),
        ({"query_cams": None, "exclude": "sysu"}, ValueError, "query_cams: expected cameras"),
        ({"gallery_cams": None, "exclude": "same_camera"}, ValueError, "gallery_cams: expected cameras"),
        ({"exclude": "camera"}, ValueError, "exclude: expected one of none"),
        ({"cmc": "all"}, ValueError, "cmc: expected one of plain"),
        ({"metric": "l2"}, ValueError, "metric: expected one of cosine"),
        ({"topk": 0}, ValueError, "topk: expected at least 1"),
        ({"topk": 2.5}, TypeError, "topk: expected a whole number"),
    ],
)
def test_bad_arguments_of_evaluate(changes, error, words):
    with pytest.raises(error, match=words):
        evaluate(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("dist", "error", "words"),
    [
        ([[1.0]], TypeError, "dist: expected a tensor"),
        (torch.ones(3, 5, dtype=torch.int32), TypeError, "dist: expected a floating"),
        (torch.ones(5), ValueError, r"dist: expected shape \[Q, G\]"),
        (torch.ones(3, 0), ValueError, r"dist: expected shape \[Q, G\]"),
        (torch.ones(4, 5), ValueError, r"query_ids: expected shape \[4\]"),
        (torch.ones(3, 6), ValueError, r"gallery_ids: expected shape \[6\]"),
        (torch.tensor([[0.0] * 5, [0.0] * 5, [0.0, 0, 0, math.nan, 0]]), ValueError, "dist: row 2 holds a NaN"),
    ],
)
def test_bad_arguments_of_evaluate_distance(dist, error, words):
    with pytest.raises(error, match=words):
        evaluate_distance(dist, torch.arange(3), torch.arange(5))


def test_overflow_of_a_product_is_reported():
    huge = torch.tensor([[3e38, -3e38]])
    with pytest.raises(ValueError, match="query, gallery: expected norms whose product"):
        evaluate(huge, torch.tensor([[3e38, 3e38], [1.0, 1.0]]), torch.tensor([1]), torch.tensor([1, 1]), metric="dot")


PEAK = """
import resource, torch
from vifast.retrieval import evaluate, evaluate_distance
torch.set_num_threads(2)
{setup}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{call}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def peak_bytes(setup, call):
    """Growth of a fresh process's peak memory over a call; the setup makes a small call first."""
    program = PEAK.format(setup=setup, call=call)
    return int(
        subprocess.run([sys.executable, "-c", program], cwd=HERE, capture_output=True, check=True, text=True).stdout
    )


def test_no_matrix_in_memory():
    ids = "a, b = torch.arange(4000) % 50, torch.arange(12000) % 50\n"
    ids += "evaluate(torch.ones(8, 8), torch.ones(9, 8), a[:8], b[:9])\n"
    given = peak_bytes(ids + "dist = torch.rand(4000, 12000)", "evaluate_distance(dist, a, b)")
    assert given < 8 * 2**20  # the matrix has 183 MiB
    made = peak_bytes(ids + "q, g = torch.rand(4000, 16), torch.rand(12000, 16)", "evaluate(q, g, a, b)")
    assert made < WORKSPACE + 24 * 2**20
