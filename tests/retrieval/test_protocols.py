import random
import re
from pathlib import Path

import numpy as np
import pytest
import retrieval_oracle as oracle
import torch

from vifast import retrieval
from vifast.retrieval import protocols

GOLDEN = Path(__file__).parents[1] / "golden"
RANKS = [0, 4, 9, 19]


def numbers(result):
    """As the golden files hold them: mAP and ranks 1, 5, 10, 20 in percent."""
    return [100 * result.mean_ap, *(100 * result.cmc[RANKS]).tolist()]


@pytest.fixture(scope="module")
def golden_sysu():
    with np.load(GOLDEN / "idkl_eval_sysu.npz") as file:
        g = dict(file)
    tables, at = {}, 0
    for cam, identity, n in g["perm_rows"].tolist():
        tables[cam, identity] = g["perm_vals"][at : at + 10 * n].reshape(10, n)
        at += 10 * n
    labels = (g["q_id"], g["g_id"], g["q_cam"], g["g_cam"])
    return g, labels, {"draw": "published", "permutations": tables, "image_numbers": g["g_img_index"]}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shots", [1, 10])
@pytest.mark.parametrize("mode", ["all", "indoor"])
def test_golden_sysu(golden_sysu, mode, shots, dtype):
    g, labels, draw = golden_sysu
    feat = [g[name].astype(dtype) for name in ("q_feat", "g_feat")]
    result = protocols.sysu(*feat, *labels, mode=mode, shots=shots, **draw)
    double = dtype == np.float64
    expected = g[f"{mode}_{shots}shot_plain_{'f64' if double else 'f32'}"]
    np.testing.assert_allclose(numbers(result), expected, atol=1e-10 if double else 1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("direction", ["i2v", "v2i"])
def test_golden_regdb_and_llcm(direction, dtype):
    with np.load(GOLDEN / "idkl_eval_regdb_llcm.npz") as file:
        g = dict(file)
    infrared, visible = (g[name].astype(dtype) for name in ("q_feat", "g_feat"))
    sides = (visible, infrared, g["g_id"], g["q_id"])
    way = {"i2v": "ir2vis", "v2i": "vis2ir"}[direction]
    for dataset in ("regdb", "llcm"):
        result = getattr(protocols, dataset)(*sides, direction=direction, protocol="idkl")
        tolerance = 1e-10 if dtype == np.float64 else 1e-4
        np.testing.assert_allclose(numbers(result), g[f"{dataset}_{way}_plain"], atol=tolerance, rtol=0)


RERANKED = {"precision": "reference"}  # k1 20, k2 6, lambda 0.3 and the half-precision rounding of the published code


@pytest.mark.parametrize("shots", [1, 10])
@pytest.mark.parametrize("mode", ["all", "indoor"])
def test_golden_sysu_reranked(golden_sysu, mode, shots):
    g, labels, draw = golden_sysu
    result = protocols.sysu(g["q_feat"], g["g_feat"], *labels, mode=mode, shots=shots, rerank=RERANKED, **draw)
    assert result.protocol.endswith(", re-ranked")
    assert result.settings["rerank"] == {"queries_only": True, "precision": "reference"}
    np.testing.assert_allclose(numbers(result), g[f"{mode}_{shots}shot_rerank_f32"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("direction", ["i2v", "v2i"])
def test_golden_regdb_and_llcm_reranked(direction):
    with np.load(GOLDEN / "idkl_eval_regdb_llcm.npz") as file:
        g = dict(file)
    sides = (g["g_feat"], g["q_feat"], g["g_id"], g["q_id"])
    way = {"i2v": "ir2vis", "v2i": "vis2ir"}[direction]
    for dataset in ("regdb", "llcm"):
        result = getattr(protocols, dataset)(*sides, direction=direction, protocol="idkl", rerank=RERANKED)
        np.testing.assert_allclose(numbers(result), g[f"{dataset}_{way}_rerank"], atol=1e-4, rtol=0)


def test_every_trials_gallery_is_reranked_by_itself():
    infrared, i_ids, i_cams = people(5, 30, [1, 2, 7])
    visible, v_ids, v_cams = people(6, 60, [1, 2, 9])
    options = {"k1": 7, "k2": 3, "lambda_": 0.2}
    result = protocols.llcm(visible, infrared, v_ids, i_ids, v_cams, i_cams, direction="i2v", rerank=options)
    unit = torch.nn.functional.normalize
    for trial, metrics in enumerate(result.trials):
        rows = drawn(trial, v_ids, v_cams, range(1, 10))
        dist = retrieval.rerank(unit(infrared), unit(visible[rows]), **options)
        labels = (i_ids, v_ids[rows], i_cams, v_cams[rows])
        one = retrieval.evaluate_distance(dist, *labels, exclude="same_id_camera", cmc="identity")
        assert (metrics.mean_ap, metrics.mean_inp) == (one.mean_ap, one.mean_inp)
        assert torch.equal(metrics.cmc, one.cmc)


def people(seed, n, cams, ids=6, dims=3):
    """Features of small integers, whose products do not round, so that ties are many and exact."""
    rng = np.random.default_rng(seed)
    feat = torch.from_numpy(rng.integers(-2, 3, (n, dims))).float()
    return feat, rng.integers(1, ids + 1, n), rng.choice(cams, n)


def slowly(query, gallery, rows, labels, exclude, cmc, topk=20):
    """(cmc, mean_ap, mean_inp) of one trial by the oracle, over dot products."""
    q_ids, g_ids, q_cams, g_cams = labels
    dist = -(query @ gallery[rows].T)
    table, ap, inp = oracle.evaluate(
        dist.tolist(), q_ids, g_ids[rows], q_cams, None if g_cams is None else g_cams[rows], exclude, cmc, topk
    )
    return table, np.nanmean(ap), np.nanmean(inp)


def check(result, expected):
    assert len(result.trials) == len(expected)
    for trial, (cmc, mean_ap, mean_inp) in zip(result.trials, expected, strict=True):
        np.testing.assert_allclose(trial.cmc, cmc, atol=1e-12)
        assert trial.mean_ap == pytest.approx(mean_ap, abs=1e-12)
        assert trial.mean_inp == pytest.approx(mean_inp, abs=1e-12)
    np.testing.assert_allclose(result.cmc, np.mean([cmc for cmc, *_ in expected], 0), atol=1e-12)
    assert result.mean_ap == pytest.approx(np.mean([x[1] for x in expected]), abs=1e-12)
    assert result.mean_inp == pytest.approx(np.mean([x[2] for x in expected]), abs=1e-12)


def drawn(trial, ids, cams, cameras, shots=1):
    """Python's global generator, as the published code seeds it."""
    random.seed(trial)
    rows = []
    for identity in sorted(set(ids.tolist())):
        for camera in cameras:
            group = [row for row in range(len(ids)) if ids[row] == identity and cams[row] == camera]
            if group:
                rows += [random.choice(group)] if shots == 1 else random.sample(group, min(shots, len(group)))
    return sorted(rows)


@pytest.mark.parametrize(("mode", "cameras"), [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
@pytest.mark.parametrize("shots", [1, 10])
def test_sysu_random_galleries(mode, cameras, shots):
    query, q_ids, q_cams = people(0, 30, [3, 6])
    gallery, g_ids, g_cams = people(1, 150, [1, 2, 4, 5], ids=5)  # person 6 is in no gallery: its queries are ignored
    labels = (q_ids, g_ids, q_cams, g_cams)
    result = protocols.sysu(query, gallery, *labels, mode=mode, shots=shots, metric="dot")
    trials = [drawn(trial, g_ids, g_cams, cameras, shots) for trial in range(10)]
    check(result, [slowly(query, gallery, rows, labels, "sysu", "identity") for rows in trials])
    assert result.sizes == tuple(len(rows) for rows in trials)
    assert {trial.num_valid for trial in result.trials} == {int((q_ids < 6).sum())}
    assert result.protocol == (
        f"SYSU-MM01, {mode}-search, {'single' if shots == 1 else 'multi'}-shot, galleries drawn by random.seed(trial)"
    )


def test_sysu_published_galleries_from_a_cell_or_a_mapping_and_given_ones():
    query, q_ids, q_cams = people(2, 20, [3, 6])
    gallery, g_ids, g_cams = people(3, 80, [1, 2, 4, 5])
    labels = (q_ids, g_ids, q_cams, g_cams)
    rng = np.random.default_rng(4)
    cell, tables, groups = np.empty((6, 1), dtype=object), {}, {}
    for camera in range(1, 7):
        cell[camera - 1, 0] = np.empty((6, 1), dtype=object)
        for identity in range(1, 7):
            rows = np.flatnonzero((g_ids == identity) & (g_cams == camera))
            table = np.array([rng.permutation(len(rows)) + 1 for _ in range(10)], np.uint8).reshape(10, -1)
            cell[camera - 1, 0][identity - 1, 0] = tables[camera, identity] = table
            groups[camera, identity] = rows
    trials = [
        sorted(
            int(groups[camera, identity][number - 1])
            for (camera, identity), table in tables.items()
            for number in table[trial, :1]
            if camera in (1, 2)
        )
        for trial in range(10)
    ]
    expected = [slowly(query, gallery, rows, labels, "sysu", "identity") for rows in trials]
    ways = (
        {"draw": "published", "permutations": cell},
        {"draw": "published", "permutations": tables},
        {"draw": trials},
    )
    for way in ways:
        check(protocols.sysu(query, gallery, *labels, mode="indoor", metric="dot", **way), expected)


@pytest.mark.parametrize("direction", ["v2i", "i2v"])
@pytest.mark.parametrize(("protocol", "cmc"), [("benchmark", "plain"), ("idkl", "identity")])
def test_regdb_splits(direction, protocol, cmc):
    splits = [(people(2 * k, 25, [2]), people(2 * k + 1, 35 + k, [3])) for k in range(10)]
    visible, infrared = ([side[i] for side in splits] for i in (0, 1))
    unit = torch.nn.functional.normalize
    sides = [
        [unit(side[0]).double() if protocol == "benchmark" else side[0].double() for side in sides]
        for sides in (visible, infrared)
    ]
    ids = [[side[1] for side in sides] for sides in (visible, infrared)]
    result = protocols.regdb(*sides, *ids, direction=direction, protocol=protocol, topk=7)
    assert result.names == tuple(f"split {k}" for k in range(1, 11))
    for k, trial in enumerate(result.trials):
        a, b = (0, 1) if direction == "v2i" else (1, 0)
        metric = "cosine" if protocol == "benchmark" else "sqeuclidean"
        one = retrieval.evaluate(sides[a][k], sides[b][k], ids[a][k], ids[b][k], metric=metric, cmc=cmc, topk=7)
        assert torch.equal(trial.cmc, one.cmc)
        assert trial.mean_ap == one.mean_ap
    assert result.sizes == tuple(len(sides[b][k]) for k in range(10))
    alone = protocols.regdb(*(side[3] for side in (*sides, *ids)), direction=direction, protocol=protocol, topk=7)
    assert alone.trials[0].mean_ap == result.trials[3].mean_ap


@pytest.mark.parametrize(
    ("protocol", "exclude", "cmc"), [("benchmark", "same_id_camera", "identity"), ("ckda", "none", "plain")]
)
@pytest.mark.parametrize("direction", ["v2i", "i2v"])
def test_llcm_random_galleries(direction, protocol, exclude, cmc):
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])  # of one length: cosines tie exactly
    _, v_ids, v_cams = people(5, 90, [1, 2, 3, 7])
    _, i_ids, i_cams = people(6, 60, [1, 2, 7, 9])
    rng = np.random.default_rng(7)
    visible, infrared = (signs[torch.from_numpy(rng.integers(0, 4, n))] for n in (90, 60))
    sides = (visible, infrared, v_ids, i_ids, v_cams, i_cams)
    result = protocols.llcm(*sides, direction=direction, protocol=protocol)
    query, gallery, *labels = sides if direction == "v2i" else (infrared, visible, i_ids, v_ids, i_cams, v_cams)
    trials = [drawn(trial, labels[1], labels[3], range(1, 10)) for trial in range(10)]
    check(result, [slowly(query, gallery, rows, labels, exclude, cmc) for rows in trials])
    assert ("benchmark" in result.protocol) == (protocol == "benchmark")


@pytest.mark.parametrize(
    ("protocol", "exclude", "cmc"), [("ckda", "none", "plain"), ("vi-lreid", "same_camera", "identity")]
)
@pytest.mark.parametrize("level", ["image", "tracklet"])
def test_vcm(level, protocol, exclude, cmc):
    rng = np.random.default_rng(8)
    sides = []
    for count in (12, 9):
        frames = rng.integers(2, 7, count)
        of = np.repeat(rng.permutation(count) - 3, frames)
        ids, cams = np.repeat(rng.integers(0, 3, count), frames), np.repeat(rng.integers(1, 3, count), frames)
        order = rng.permutation(len(of))  # frames of several tracklets mixed
        feat = torch.from_numpy(rng.integers(-9, 10, (len(of), 4))).double()
        sides.append((feat, *(x[order] for x in (ids, cams, of))))
    rows = []
    for feat, ids, cams, of in sides:
        names = of.tolist()
        kept = [t for t in dict.fromkeys(names) if names.count(t) >= 4]
        members = [[i for i, t in enumerate(names) if t == tracklet] for tracklet in kept]
        mean = torch.stack([feat[m].mean(0) if level == "tracklet" else feat[m[0]] for m in members])
        first = [m[0] for m in members]
        rows.append((torch.nn.functional.normalize(mean), ids[first], cams[first]))
    (visible, v_ids, v_cams, v_of), (infrared, i_ids, i_cams, i_of) = sides
    result = protocols.vcm(
        visible, infrared, v_ids, i_ids, v_cams, i_cams, visible_tracklets=v_of, infrared_tracklets=i_of,
        level=level, protocol=protocol, min_frames=4, direction="i2v",
    )  # fmt: skip
    (gallery, g_ids, g_cams), (query, q_ids, q_cams) = rows
    expected = slowly(query, gallery, np.arange(len(g_ids)), (q_ids, g_ids, q_cams, g_cams), exclude, cmc)
    check(result, [expected])
    assert result.sizes == (len(g_ids),)


def test_vcm_counts_twelve_frames_at_image_level():
    of = torch.arange(3).repeat_interleave(torch.tensor([11, 12, 13]))
    feat = torch.nn.functional.one_hot(of, 3).float()
    sides = (feat, feat, of, of)
    tracks = {"visible_tracklets": of, "infrared_tracklets": of}
    assert protocols.vcm(*sides, **tracks, level="image").sizes == (2,)
    assert protocols.vcm(*sides, **tracks).sizes == (3,)


FEAT, IDS, CAMS = torch.ones(4, 2), torch.tensor([1, 1, 2, 2]), torch.tensor([1, 2, 1, 4])
SYSU = (FEAT, FEAT, IDS, IDS, CAMS, CAMS)
TABLES = {(1, 1): np.ones((10, 1)), (2, 1): np.ones((10, 1)), (1, 2): np.ones((10, 1)), (4, 2): np.ones((10, 1))}
VCM = {"visible_tracklets": IDS, "infrared_tracklets": IDS}


@pytest.mark.parametrize(
    ("protocol", "arguments", "options", "error", "words"),
    [
        ("sysu", SYSU, {"mode": "outdoor"}, ValueError, "mode: expected one of all, indoor"),
        ("sysu", SYSU, {"shots": 5}, ValueError, "shots: expected 1 or 10, got 5"),
        ("sysu", SYSU, {"draw": "mine"}, ValueError, "draw: expected one of random, published"),
        ("sysu", SYSU, {"draw": "published"}, ValueError, "permutations: expected a mapping or the 6 x 1 cell"),
        ("sysu", SYSU, {"draw": "published", "permutations": np.empty((5, 1), object)}, ValueError, r"got \(5, 1\)"),
        (
            "sysu",
            SYSU,
            {"draw": "published", "permutations": TABLES | {(1, 1): np.ones((9, 1))}},
            ValueError,
            "camera 1, identity 1: expected 10 x n numbers",
        ),
        (
            "sysu",
            SYSU,
            {"draw": "published", "permutations": TABLES | {(5, 1): np.ones((10, 1))}},
            ValueError,
            "permutations: name image 1 of identity 1 by camera 5",
        ),
        (
            "sysu",
            SYSU,
            {"draw": "published", "permutations": TABLES, "image_numbers": IDS[:3]},
            ValueError,
            r"image_numbers: expected shape \[4\]",
        ),
        ("sysu", SYSU, {"draw": [[0], [3]], "mode": "indoor"}, ValueError, r"draw\[1\]: expected rows of cameras 1, 2"),
        ("sysu", SYSU, {"draw": [[0, 4]]}, ValueError, r"draw\[0\]: expected rows 0..3, got 4"),
        ("sysu", SYSU, {"draw": []}, ValueError, "trials: expected at least one"),
        ("sysu", SYSU, {"metric": "l2"}, ValueError, "metric: expected one of"),
        ("sysu", (*SYSU[:4], None, CAMS), {}, ValueError, "query_cams: expected cameras for SYSU-MM01"),
        ("sysu", (*SYSU[:5], None), {}, ValueError, "gallery_cams: expected cameras for SYSU-MM01"),
        ("sysu", (FEAT, FEAT[:, :1], *SYSU[2:]), {}, ValueError, "gallery: expected 2 columns as in query"),
        ("sysu", SYSU, {"rerank": True}, TypeError, "rerank: expected a mapping of options or None, got bool"),
        ("sysu", SYSU, {"rerank": {"topk": 3}}, ValueError, "rerank: expected no topk"),
        ("sysu", SYSU, {"rerank": {"k1": 0}}, ValueError, "k1: expected"),
        ("sysu", SYSU, {"rerank": {}, "metric": "dot"}, ValueError, "metric: expected a distance for rerank"),
        ("regdb", (FEAT, FEAT, IDS, IDS), {"direction": "t2v"}, ValueError, "direction: expected one of v2i, i2v"),
        ("regdb", (FEAT, FEAT, IDS, IDS), {"protocol": "mine"}, ValueError, "protocol: expected one of"),
        ("regdb", ([FEAT], FEAT, [IDS], [IDS]), {}, ValueError, "infrared: expected a list .* got Tensor"),
        ("regdb", ([FEAT], [FEAT], [IDS], [IDS] * 2), {}, ValueError, "infrared_ids: expected a list .* got 2"),
        ("regdb", ([], [], [], []), {}, ValueError, "visible: expected a list of at least one split"),
        ("regdb", (FEAT, FEAT[0], IDS, IDS), {}, ValueError, r"infrared: expected shape \[N, D\]"),
        ("regdb", (FEAT * np.nan, FEAT, IDS, IDS), {}, ValueError, "visible: row 0 is not finite"),
        ("regdb", (FEAT[:0], FEAT, IDS[:0], IDS), {}, ValueError, "visible: expected at least one row"),
        ("llcm", (FEAT, FEAT, IDS, IDS), {}, ValueError, "visible_cams: expected cameras for LLCM's benchmark"),
        ("llcm", (FEAT, FEAT, IDS, IDS, CAMS, None), {}, ValueError, "infrared_cams: expected cameras for LLCM's gall"),
        ("llcm", (FEAT, FEAT, IDS, IDS), {"protocol": "mine"}, ValueError, "protocol: expected one of"),
        ("vcm", (FEAT, FEAT, IDS, IDS), VCM | {"level": "clip"}, ValueError, "level: expected one of image, tracklet"),
        ("vcm", (FEAT, FEAT, IDS, IDS), VCM | {"protocol": "mine"}, ValueError, "protocol: expected one of"),
        ("vcm", (FEAT, FEAT, IDS, IDS), VCM | {"min_frames": 0}, ValueError, "min_frames: expected at least 1"),
        ("vcm", (FEAT, FEAT, IDS, IDS), VCM | {"protocol": "vi-lreid"}, ValueError, "visible_cams: expected cameras"),
        (
            "vcm",
            (FEAT, FEAT, IDS, IDS),
            VCM | {"level": "image"},
            ValueError,
            "visible_tracklets: expected a tracklet of at least 12 frames",
        ),
        (
            "vcm",
            (FEAT, FEAT, IDS, IDS),
            VCM | {"infrared_tracklets": IDS * 0},
            ValueError,
            "infrared_ids: row 2 differs from row 0 of the same tracklet",
        ),
        (
            "vcm",
            (FEAT, FEAT, IDS, IDS, CAMS, CAMS),
            VCM,
            ValueError,
            "visible_cams: row 1 differs from row 0 of the same tracklet",
        ),
    ],
)
def test_bad_arguments(protocol, arguments, options, error, words):
    with pytest.raises(error, match=words):
        getattr(protocols, protocol)(*arguments, **options)


@pytest.mark.parametrize(
    ("trials", "error", "words"),
    [
        ([], ValueError, "trials: expected at least one, got none"),
        ([[]], ValueError, r"trials[0]: expected shape [n] with at least one row"),
        ([[0], [0.5]], TypeError, "trials[1]: expected integers"),
        ([[0, 1, 0]], ValueError, "trials[0]: expected distinct rows, got 0 twice"),
        ([[-1]], ValueError, "trials[0]: expected rows 0..3, got -1"),
        (["rows"], TypeError, "trials[0]: expected a tensor or an array"),
    ],
)
def test_bad_trials(trials, error, words):
    with pytest.raises(error, match=re.escape(words)):
        retrieval.evaluate_trials(FEAT, FEAT, IDS, IDS, trials=trials)
