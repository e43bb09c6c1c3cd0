"""Two thousand random cases against plain Python: ties everywhere, duplicates, one-row galleries, nothing left.

Features are such that no sum rounds, whatever its order: small integers, and for cosines rows of +1 and -1 (and of
zeros) whose norms are powers of two. So a difference of one place is an error, never a rounding.
"""

import random

import numpy as np
import pytest
import retrieval_oracle as oracle
import torch

from vifast.retrieval import drop_in, evaluate, evaluate_distance, evaluate_trials, protocols, search

CASES, SHARES = 2000, 20
MODES = ("none", "same_camera", "same_id_camera", "sysu")
METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")
DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Case:
    """Features [Q, D] and [G, D], labels, and options."""

    def __init__(self, rng):
        self.rng = rng
        self.metric = str(rng.choice(METRICS))
        self.exclude, self.cmc = str(rng.choice(MODES)), str(rng.choice(("plain", "identity")))
        self.topk = int(rng.integers(1, 25))
        q = int(
            rng.choice((1, 2, 4, 8))
        )  # the origin of the Euclidean metrics is a mean of queries: a power of two is exact
        g = 1 if rng.random() < 0.1 else int(rng.integers(1, 40))
        dims = int(rng.choice((1, 4, 16)))
        if self.metric == "cosine":
            self.query, self.gallery = (self._signs(n, dims) for n in (q, g))
        else:
            levels = int(rng.choice((1, 3)))
            self.query, self.gallery = (rng.integers(-levels, levels + 1, (n, dims)).astype(float) for n in (q, g))
        if rng.random() < 0.3:  # duplicates
            self.gallery[rng.integers(0, g, g // 2)] = self.gallery[rng.integers(0, g)]
            self.query[rng.integers(0, q)] = self.gallery[rng.integers(0, g)]
        people, cams = int(rng.integers(1, 6)), int(rng.integers(1, 5))
        self.ids = rng.integers(0, people, q), rng.integers(0, people, g)
        self.cams = rng.integers(1, cams + 1, q), rng.integers(1, cams + 1, g)
        self.dtype = DTYPES[rng.integers(len(DTYPES))]

    def _signs(self, n, dims):
        rows = self.rng.choice((-1.0, 1.0), (n, dims)) * self.rng.choice((0.5, 1.0, 4.0), (n, 1))
        return rows * (self.rng.random((n, 1)) < 0.9)

    def features(self):
        return [torch.from_numpy(rows).to(self.dtype) for rows in (self.query, self.gallery)]

    def labels(self):
        return (*self.ids, *self.cams)

    def options(self):
        return {"exclude": self.exclude, "cmc": self.cmc, "topk": self.topk}

    def distances(self, metric, rows=None):
        """The definition, one pair at a time."""
        gallery = self.gallery if rows is None else self.gallery[rows]
        return [[_distance(metric, a, b) for b in gallery.tolist()] for a in self.query.tolist()]

    def expected(self, metric, exclude, cmc, topk, rows=None):
        rows = np.arange(len(self.gallery)) if rows is None else rows
        labels = (self.ids[0], self.ids[1][rows], self.cams[0], self.cams[1][rows])
        return oracle.evaluate(self.distances(metric, rows), *labels, exclude, cmc, topk)


def _distance(metric, a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    if metric == "dot":
        return -dot
    if metric == "cosine":
        norms = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
        return 1 - (dot / norms if norms else 0.0)
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def equal(result, expected):
    """A RankMetrics and the oracle's answer, to the last bit."""
    table, ap, inp = expected
    np.testing.assert_array_equal(result.cmc, table)
    np.testing.assert_array_equal(result.ap, ap)
    np.testing.assert_array_equal(result.inp, inp)
    assert result.num_valid == int((~np.isnan(ap)).sum())


def compare(call, expected):
    """Where no query is valid the call must say so."""
    if any(part is None for part in expected):
        with pytest.raises(ValueError, match="expected a query with a positive"):
            call()
        return
    results = call()
    for result, part in zip(results if isinstance(results, tuple) else (results,), expected, strict=True):
        equal(result, part)


def fuzz_evaluate(case):
    options = case.options()
    features = case.features()
    compare(
        lambda: evaluate(*features, *case.labels(), metric=case.metric, **options),
        [case.expected(case.metric, **options)],
    )


def fuzz_evaluate_distance(case):
    options = case.options()
    dist = np.array(case.distances(case.metric))
    dist[case.rng.random(dist.shape) < 0.05] = np.inf
    dist = torch.from_numpy(dist).to(case.dtype)
    expected = oracle.evaluate(dist.double().tolist(), *case.labels(), *options.values())
    compare(lambda: evaluate_distance(dist, *case.labels(), **options), [expected])


def fuzz_search(case):
    query, gallery = case.features()
    mask = case.rng.random((len(query), len(gallery))) < case.rng.choice((0.0, 0.5, 1.0))
    k = int(case.rng.integers(1, len(gallery) + 1))
    dist, index = search(query, gallery, k, metric=case.metric, exclude=mask)
    expected, rows = oracle.neighbours(query.double(), gallery.double(), k, case.metric, mask)
    np.testing.assert_array_equal(index, rows)
    np.testing.assert_allclose(dist, expected, rtol=1e-6, atol=1e-6)


def fuzz_trials(case):
    options = case.options()
    rows = [np.flatnonzero(case.rng.random(len(case.gallery)) < 0.6) for _ in range(case.rng.integers(1, 20))]
    rows = [part if len(part) else np.array([0]) for part in rows]
    features = case.features()
    compare(
        lambda: evaluate_trials(*features, *case.labels(), trials=rows, metric=case.metric, **options),
        [case.expected(case.metric, **options, rows=part) for part in rows],
    )


def drawn(case, cameras):
    """Ten galleries as the published code draws them."""
    trials = []
    for trial in range(10):
        random.seed(trial)
        groups = [
            np.flatnonzero((case.ids[1] == identity) & (case.cams[1] == camera)).tolist()
            for identity in sorted(set(case.ids[1].tolist()))
            for camera in cameras
        ]
        trials.append(np.array(sorted(random.choice(group) for group in groups if group), dtype=np.int64))
    return trials


def fuzz_sysu(case):
    rows = drawn(case, (1, 2, 4, 5))
    how = ("sysu", "identity", case.topk)
    if any(len(part) == 0 for part in rows):  # a gallery of camera 3 alone
        with pytest.raises(ValueError, match="with at least one row"):
            protocols.sysu(*case.features(), *case.labels(), metric=case.metric, topk=case.topk)
        return
    compare(
        lambda: protocols.sysu(*case.features(), *case.labels(), metric=case.metric, topk=case.topk).trials,
        [case.expected(case.metric, *how, rows=part) for part in rows],
    )


def fuzz_llcm_and_regdb(case):
    (infrared, visible), (i_ids, v_ids), (i_cams, v_cams) = case.features(), case.ids, case.cams
    if case.metric == "cosine":
        how = ("cosine", "same_id_camera", "identity", case.topk)
        compare(
            lambda: (
                protocols.llcm(visible, infrared, v_ids, i_ids, v_cams, i_cams, direction="i2v", topk=case.topk).trials
            ),
            [case.expected(*how, part) for part in drawn(case, (1, 2, 3, 4))],
        )
        compare(
            lambda: protocols.regdb(visible, infrared, v_ids, i_ids, direction="i2v", topk=case.topk).trials,
            [case.expected("cosine", "none", "plain", case.topk)],
        )
        return
    expected = [case.expected("sqeuclidean", "none", "identity", case.topk)]
    how = {"direction": "i2v", "protocol": "idkl", "topk": case.topk}
    for protocol in (protocols.llcm, protocols.regdb):
        compare(lambda protocol=protocol: protocol(visible, infrared, v_ids, i_ids, **how).trials, expected)


def fuzz_vcm(case):
    """Tracklets of two or three equal frames: their mean and their first are the frame."""
    if case.metric != "cosine":
        return fuzz_evaluate(case)
    frames = [np.repeat(np.arange(n), case.rng.integers(2, 4, n)) for n in (len(case.query), len(case.gallery))]
    query, gallery = (rows[of] for rows, of in zip(case.features(), frames, strict=True))
    labels = [values[of] for pair in (case.ids, case.cams) for values, of in zip(pair, frames, strict=True)]
    level, protocol = str(case.rng.choice(("image", "tracklet"))), str(case.rng.choice(("ckda", "vi-lreid")))
    how = ("none", "plain") if protocol == "ckda" else ("same_camera", "identity")
    swapped = [labels[1], labels[0], labels[3], labels[2]]
    options = {"level": level, "protocol": protocol, "min_frames": 2, "topk": case.topk, "direction": "i2v"}
    options |= {"infrared_tracklets": frames[0], "visible_tracklets": frames[1]}
    compare(
        lambda: protocols.vcm(gallery, query, *swapped, **options).trials,
        [case.expected("cosine", *how, case.topk)],
    )


def fuzz_drop_in(case):
    kinds = (("eval_sysu", "sysu", "identity"), ("eval_llcm", "same_id_camera", "identity"))
    name, exclude, cmc = kinds[case.rng.integers(2)]
    dist = np.array(case.distances(case.metric))
    topk = min(case.topk, dist.shape[1])
    expected = oracle.evaluate(dist.tolist(), *case.labels(), exclude, cmc, topk)
    if expected is None:
        with pytest.raises(ValueError, match="expected a query with a positive"):
            getattr(drop_in, name)(dist, *case.labels(), case.topk)
        return
    curve, mean_ap, mean_inp = getattr(drop_in, name)(dist, *case.labels(), case.topk)
    np.testing.assert_array_equal(curve, np.float32(expected[0]))
    assert mean_ap == pytest.approx(np.nanmean(expected[1]), abs=1e-15)
    assert mean_inp == pytest.approx(np.nanmean(expected[2]), abs=1e-15)


KINDS = {
    fuzz_evaluate: 0.3,
    fuzz_evaluate_distance: 0.2,
    fuzz_search: 0.2,
    fuzz_trials: 0.1,
    fuzz_sysu: 0.05,
    fuzz_llcm_and_regdb: 0.05,
    fuzz_vcm: 0.05,
    fuzz_drop_in: 0.05,
}


@pytest.mark.parametrize("share", range(SHARES))
def test_no_difference(share):
    for number in range(share, CASES, SHARES):
        rng = np.random.default_rng([20, number])
        kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        try:
            kind(Case(rng))
        except BaseException:
            print(f"{kind.__name__}, case {number}")
            raise
