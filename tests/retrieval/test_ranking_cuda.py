"""Rank counting on a GPU: the kernel where there is one, and everywhere the Python side with the kernel's contract."""

from types import SimpleNamespace

import numpy as np
import pytest
import retrieval_oracle as oracle
import torch

from vifast.retrieval import evaluate, evaluate_distance, ranking

MODES = ("none", "same_camera", "same_id_camera", "sysu")


def cases(seed):
    rng = np.random.default_rng(seed)
    for case in range(12):
        q, g = rng.integers(1, 12), rng.integers(1, 700 if case % 2 else 20)
        dist = torch.from_numpy(rng.integers(-9, 9, (q, g)) / 4 if case % 3 else rng.standard_normal((q, g)))
        ids, other = rng.integers(0, 5, q), np.r_[rng.integers(0, 5, g - 1), 0]
        ids[0] = 0
        yield dist, ids, other, rng.integers(1, 4, q), rng.integers(1, 4, g)


def same(a, b):
    assert torch.equal(a.cmc, b.cmc)
    np.testing.assert_array_equal(a.ap, b.ap)
    np.testing.assert_array_equal(a.inp, b.inp)


def contract(
    keys,
    query_identity,
    gallery_identity,
    drop_camera,
    gallery_camera,
    own_only,
    begin,
    row,
    slot,
    rank,
    first,
    seen,
    stream,
):
    """What csrc/ranking_cuda.h promises, by the oracle's sort."""
    assert stream == 17
    for q, values in enumerate(keys.tolist()):
        own = int(query_identity[q])
        keep = [
            j
            for j in sorted(range(len(values)), key=lambda j: (values[j], j))
            if drop_camera[q] < 0 or gallery_camera[j] != drop_camera[q] or (own_only and gallery_identity[j] != own)
        ]
        place = {j: r + 1 for r, j in enumerate(keep)}
        mine = row[begin[own] : begin[own + 1]].tolist()
        assert len(mine) == slot[q + 1] - slot[q]
        ranks = [place.get(j, 0) for j in mine]
        rank[slot[q] : slot[q + 1]] = torch.tensor(ranks)
        best = min((r for r in ranks if r), default=0)
        if best and seen is not None:
            best = len({int(gallery_identity[j]) for j in keep[: best - 1]}) + 1
        first[q] = best


@pytest.mark.parametrize("cmc", ["plain", "identity"])
@pytest.mark.parametrize("exclude", MODES)
def test_python_side(monkeypatch, exclude, cmc):
    monkeypatch.setattr(ranking, "_CUDA", SimpleNamespace(rank_count_float32=contract, rank_count_float64=contract))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=17))
    for dist, *labels in cases([MODES.index(exclude), len(cmc)]):
        expected = oracle.evaluate(dist.tolist(), *labels, exclude, cmc, 20)
        state = ranking.RankFold(*dist.shape, *labels, exclude, cmc, 20)
        for start in range(0, len(dist), 5):
            state._fold_cuda(dist[start : start + 5], slice(start, start + 5))
        if expected is None:
            with pytest.raises(ValueError, match="query_ids"):
                state.metrics("dist")
            continue
        result = state.metrics("dist")
        np.testing.assert_array_equal(result.cmc, expected[0])
        np.testing.assert_array_equal(result.ap, expected[1])
        np.testing.assert_array_equal(result.inp, expected[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("cmc", ["plain", "identity"])
@pytest.mark.parametrize("exclude", MODES)
def test_gpu_equals_cpu(monkeypatch, exclude, cmc, built):
    if built and ranking._CUDA is None:
        pytest.skip("vifast.kernels._CUDA is not built")
    if not built:
        monkeypatch.setattr(ranking, "_CUDA", None)
    for dist, *labels in cases([MODES.index(exclude), len(cmc), 1]):
        for dtype in (torch.float32, torch.float64, torch.float16):
            matrix = dist.to(dtype)
            try:
                expected = evaluate_distance(matrix, *labels, exclude=exclude, cmc=cmc)
            except ValueError:
                continue
            same(evaluate_distance(matrix.cuda(), *labels, exclude=exclude, cmc=cmc), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_features_and_nan():
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randint(-3, 4, (n, 6), generator=generator).float() for n in (40, 333))
    ids, other = torch.arange(40) % 7, torch.arange(333) % 7
    for metric in ("dot", "sqeuclidean"):
        got = evaluate(query.cuda(), gallery.cuda(), ids, other, metric=metric)
        assert got.mean_ap == pytest.approx(evaluate(query, gallery, ids, other, metric=metric).mean_ap, abs=0.01)
    dist = torch.rand(3, 4, device="cuda")
    dist[1, 2] = torch.nan
    with pytest.raises(ValueError, match="dist: row 1 holds a NaN"):
        evaluate_distance(dist, torch.arange(3), torch.arange(4))
