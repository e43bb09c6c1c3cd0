import subprocess
import sys
from pathlib import Path

import pytest
import sharded_cases as cases
import torch

from vifast.retrieval import Gallery, ShardedGallery, evaluate, products, search

HERE = Path(__file__).parent  # not the root, whose bare package would hide an installed one


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(31, 6, generator=generator), torch.arange(31) % 6


@pytest.fixture(scope="module", params=[2, 3])
def group(request, tmp_path_factory, rows):
    """What every rank of a group of processes reports."""
    folder = tmp_path_factory.mktemp("group")
    Gallery(*rows).save(folder / "g.safetensors")
    program = [sys.executable, cases.__file__, str(folder)]
    ranks = [
        subprocess.Popen([*program, str(rank), str(request.param)], cwd=HERE, stderr=subprocess.PIPE, text=True)
        for rank in range(request.param)
    ]
    told = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), "\n".join(told)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def same(got, expected):
    assert torch.equal(torch.as_tensor(got).nan_to_num(nan=-7.0), torch.as_tensor(expected).nan_to_num(nan=-7.0))


@pytest.fixture(scope="module")
def expected():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LEAST_ROWS", 16)
        patch.setattr(products, "WORKSPACE", 1)
        return cases.alone()


def test_every_rank_has_the_bits_of_one_process(group, expected):
    for results in group:
        assert len(results["equal"]) == len(expected)
        for number, pair in enumerate(zip(results["equal"], expected, strict=True)):
            for got, wanted in zip(*pair, strict=True):
                assert got.dtype == wanted.dtype
                same(got, wanted), number


def test_from_a_file(group, rows):
    features, ids = rows
    query = features[:5] + 0.25
    for results in group:
        for got, wanted in zip(results["file"][0], search(query, features, 4), strict=True):
            same(got, wanted)
        same(results["file"][1], evaluate(query, features, ids[:5], ids).ap)


ERRORS = [
    ("TypeError", "features: expected a tensor or an array, got list"),
    ("ValueError", "features, ids, cams: expected the same on every rank"),
    ("ValueError", "features, ids, cams: expected the same on every rank"),
    ("ValueError", "features, ids, cams: expected the same on every rank"),
    ("ValueError", "features: expected at least one row on one of the ranks"),
    ("ValueError", "features: row {last} is not finite"),
    ("ValueError", "features: expected at least one column"),
    ("TypeError", "group: expected a process group, got str"),
    ("FileNotFoundError", "none.npy: no such file"),
    ("ValueError", "k: expected at least 1, got 0"),
    ("ValueError", "k: expected at most"),
    ("ValueError", "query and options: expected the same on every rank, rank {odd} was given another than 0"),
    ("ValueError", "metric: expected one of cosine"),
    ("ValueError", "chunk: expected at least 1"),
    ("ValueError", "query and options: expected the same on every rank"),
    ("ValueError", "query and options: expected the same on every rank, rank {odd}"),
    ("ValueError", "query: expected at least one row, got [0, 2]"),
    ("ValueError", "query: row 0 is not finite"),
    ("TypeError", "query: expected torch.float32 as the gallery, got torch.float64"),
    ("TypeError", "query: expected a tensor or an array, got NoneType"),
    ("TypeError", "query: expected None on ranks other than 0, got Tensor"),
    ("ValueError", "source: expected a rank below"),
    ("ValueError", "exclude: expected shape [4, "),
    ("OSError", "no mask"),
    ("ValueError", "ids: expected a gallery with identities, got None"),
    ("ValueError", "query_ids: expected shape [4]"),
    ("ValueError", "query_ids, query_cams, topk: expected the same on every rank"),
    ("ValueError", 'query_cams: expected cameras for exclude="sysu"'),
    ("ValueError", "metric: expected one of cosine"),
    ("ValueError", "query_ids: expected a query with a positive"),
    ("ValueError", "query, gallery: expected norms whose product stays below"),
    ("ValueError", "query: row 0 holds a NaN"),
    ("ValueError", "k1: expected at least 1, got 0"),
    ("ValueError", "precision: expected one of float32, reference, got 'half'"),
    ("ValueError", "topk: expected at most"),
    ("ValueError", "query and options: expected the same on every rank, rank 1"),
    ("ValueError", "query: expected rows of a norm of at most 1e+18"),
]


def test_an_error_on_one_rank_is_raised_on_all(group):
    for results in group:
        assert len(results["errors"]) == len(ERRORS)
        for (kind, message), (wanted, words) in zip(results["errors"], ERRORS, strict=True):
            assert kind == wanted, message
            assert words.format(last=3 * (len(group) - 1), odd=len(group) - 1) in message


def test_without_a_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        ShardedGallery(torch.ones(2, 2))


def test_bytes_on_the_wire_are_those_of_the_page(group):
    """docs/galleries.md, per query: W ranks, D = 6 columns of 2 bytes, k = 7, P = 4 positives a rank, 5 identities."""
    ranks = len(group)
    positives = 4 * ranks
    search = 16 * 7 * (ranks - 1)
    evaluate = 2 * (ranks - 1) / ranks * (4 + 8) * positives
    gallery, shared = 160 * ranks, 2 * (ranks - 1) / ranks
    lists = (60 + gallery) * (16 * 9 + 4) * (ranks - 1) + 60 * 4 * 160 * (ranks - 1) + 12 * gallery
    agreed = 8 * shared * (1 + ranks)  # that no rank failed, once a block
    whole = {"rerank, lists": lists + agreed, "rerank, pairs": 4 * 3 * (60 + gallery) * shared + 12 * gallery}
    whole["rerank, reference"] = 12 * gallery
    expected = {
        "search": search,
        "search, queries sent": search + 2 * 6,
        "evaluate": evaluate,
        "evaluate, queries sent": evaluate + 2 * 6,
        "identity": evaluate + 4 * 5 * (ranks - 1),
    }
    for rank, results in enumerate(group):
        wanted = {name: 20 * value for name, value in expected.items()} | whole
        assert results["wire"] == {name: pytest.approx(value) for name, value in wanted.items()}, rank
