"""Search and evaluation of a gallery."""

import rivals
import torch

from cases._case import Case
from vifast import retrieval

IDENTITIES = {301: 96, 3010: 96, 2060: 206, 8680: 351, 20000: 1000}  # of SYSU-MM01, RegDB, LLCM by gallery rows
RERANKABLE = 10_000  # rows of both sets beyond which the classic re-ranking takes half a minute and gigabytes
SORTABLE = 12_000_000  # pairs beyond which the sorting evaluator takes minutes


def _around(centers, generator):
    """Unit rows, one near each centre."""
    return torch.nn.functional.normalize(centers + 2 * torch.randn(centers.shape, generator=generator))


def _gallery(q, g, d, device):
    ids = IDENTITIES.get(g, 16)
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(ids, d, generator=generator)
    query_ids, gallery_ids = (torch.randint(0, ids, (n,), generator=generator) for n in (q, g))
    rows = [_around(centers[x], generator).to(device) for x in (query_ids, gallery_ids)]
    query_cams = torch.where(torch.rand(q, generator=generator) < 0.5, 3, 6)
    gallery_cams = torch.tensor([1, 2, 4, 5])[torch.randint(0, 4, (g,), generator=generator)]
    return (*rows, *(x.to(device) for x in (query_ids, gallery_ids, query_cams, gallery_cams)))


def _evaluate(q, g, d, device="cpu"):
    query, gallery, *labels = _gallery(q, g, d, device)
    out = torch.empty(q, g, device=device)
    as_numpy = [x.cpu().numpy() for x in labels]

    def ours():
        return retrieval.evaluate(query, gallery, *labels, exclude="sysu")

    def numpy_sort():
        return rivals.evaluate_by_sorting(-(query @ gallery.T).cpu().numpy(), *as_numpy)

    providers = {"floor": lambda: torch.mm(query, gallery.T, out=out), "vifast": ours}
    return providers | ({"numpy_sort": numpy_sort} if q * g < SORTABLE else {})


def _evaluate_trials(q, groups, shots, d, device="cpu"):
    """Ten galleries as SYSU-MM01 draws them: ``shots`` of about 22 images of each person by each camera."""
    images, trials = 22, 10
    generator = torch.Generator().manual_seed(0)
    group, people = torch.arange(groups).repeat_interleave(images), -(-groups * 96 // 301)
    centers = torch.randn(people, d, generator=generator)
    ids = (torch.randint(0, people, (q,), generator=generator), group % people)
    query, gallery = (_around(centers[x], generator).to(device) for x in ids)
    query_cams = torch.where(torch.rand(q, generator=generator) < 0.5, 3, 6)
    labels = (*ids, query_cams, torch.tensor([1, 2, 4, 5])[group // people])
    drawn = [
        (torch.rand(groups, images, generator=generator).argsort(1)[:, :shots] + images * torch.arange(groups)[:, None])
        .flatten()
        .sort()[0]
        for _ in range(trials)
    ]
    union = gallery[torch.cat(drawn).unique().to(device)]
    out = torch.empty(q, len(union), device=device)
    how = {"exclude": "sysu", "cmc": "identity"}

    def one_by_one():
        for rows in drawn:
            part = [x[rows] if i % 2 else x for i, x in enumerate(labels)]
            retrieval.evaluate(query, gallery[rows.to(device)], *part, **how)

    def numpy_sort():
        for rows in drawn:
            part = [(x[rows] if i % 2 else x).numpy() for i, x in enumerate(labels)]
            rivals.evaluate_by_sorting(-(query @ gallery[rows.to(device)].T).cpu().numpy(), *part)

    providers = {
        "floor": lambda: torch.mm(query, union.T, out=out),
        "vifast": lambda: retrieval.evaluate_trials(query, gallery, *labels, trials=drawn, **how),
        "one_by_one": one_by_one,
    }
    return providers | ({"numpy_sort": numpy_sort} if trials * q * groups * shots < SORTABLE else {})


def _evaluate_distance(q, g, device="cpu"):
    query, gallery, *labels = _gallery(q, g, 64, device)
    dist = 1 - query @ gallery.T
    as_numpy = [x.cpu().numpy() for x in (dist, *labels)]
    providers = {
        "floor": dist.sum,  # the matrix must be read once
        "vifast": lambda: retrieval.evaluate_distance(dist, *labels, exclude="sysu"),
    }
    return providers | ({"numpy_sort": lambda: rivals.evaluate_by_sorting(*as_numpy)} if q * g < SORTABLE else {})


def _search(q, g, d, k, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.nn.functional.normalize(torch.randn(n, d, generator=generator)).to(device) for n in (q, g))
    chunk = torch.empty(min(q, 1000), g, device=device)

    def floor():
        for i in range(0, q, 1000):
            rows = query[i : i + 1000]
            torch.mm(rows, gallery.T, out=chunk[: len(rows)])

    providers = {
        "floor": floor,
        "vifast": lambda: retrieval.search(query, gallery, k, metric="dot"),
        "matmul_topk": lambda: rivals.search_matmul(query, gallery, k),
    }
    if device == "cpu" and k < 100:  # its time does not depend on k, and it is minutes
        providers["faiss"] = lambda: rivals.search_faiss(query, gallery, k)
    return providers


def _people(q, g, d, device):
    """Unit rows, ten of an identity, in any order."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(max(1, (q + g) // 10), d, generator=generator)
    ids = torch.arange(q + g) % len(centers)
    rows = centers[ids] + 2 * torch.randn(q + g, d, generator=generator)
    return torch.nn.functional.normalize(rows)[torch.randperm(q + g, generator=generator)].to(device)


def _blocks(dist, q):
    return [part.contiguous() for part in (dist[:q, q:], dist[:q, :q], dist[q:, q:])]


def _rerank(q, g, d, device="cpu"):
    rows = _people(q, g, d, device)
    out = torch.empty(q + g, q + g, device=device)

    def numpy_classic():
        return rivals.rerank_classic(*(x.cpu().numpy() for x in _blocks(2 - 2 * rows @ rows.T, q)))

    providers = {
        "floor": lambda: torch.mm(rows, rows.T, out=out),
        "vifast": lambda: retrieval.rerank(rows[:q], rows[q:]),
        "gnn": lambda: retrieval.rerank(rows[:q], rows[q:], method="gnn"),
        "queries_only": lambda: retrieval.rerank(rows[:q], rows[q:], queries_only=True),
        "topk": lambda: retrieval.rerank(rows[:q], rows[q:], topk=min(100, g)),
    }
    return providers | ({"numpy_classic": numpy_classic} if q + g < RERANKABLE else {})


def _rerank_distance(q, g, device="cpu"):
    rows = _people(q, g, 512, device)
    parts = _blocks((2 - 2 * rows @ rows.T).clamp(min=0), q)
    as_numpy = [x.cpu().numpy() for x in parts]
    return {
        "floor": lambda: [x.sum() for x in parts],  # the matrices must be read once
        "vifast": lambda: retrieval.rerank_distance(*parts),
        "numpy_classic": lambda: rivals.rerank_classic(*as_numpy),
    }


LLCM, LARGE = (7166, 8680, 2048), (20000, 80000, 512)
CASES = (
    Case("evaluate", ((3803, 301, 2048), (3803, 3010, 2048), (2060, 2060, 2048), LLCM), _evaluate, gpu=(LLCM, LARGE)),
    Case("evaluate_trials", ((3803, 301, 1, 2048), (3803, 301, 10, 2048)), _evaluate_trials),
    Case(
        "evaluate_distance", ((3803, 301), (3803, 3010), (2060, 2060), (7166, 8680), (10000, 20000)), _evaluate_distance
    ),
    Case(
        "search",
        ((10000, 100000, 512, 10), (10000, 100000, 512, 100), (100, 1000000, 256, 10)),
        _search,
        gpu=((10000, 100000, 512, 10), (10000, 1000000, 512, 10)),
    ),
    Case("rerank", ((3803, 301, 2048), (3803, 3010, 2048), LLCM), _rerank, gpu=(LLCM, LARGE)),
    Case("rerank_distance", ((2000, 2000), (4000, 4000)), _rerank_distance),
)
