"""What one process and several must agree on. As a program: one rank of a group; ``FOLDER RANK RANKS``."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from vifast.retrieval import Gallery, ShardedGallery, evaluate, products, rerank, search, sharded, sharded_rerank

METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")
MODES = ("none", "same_camera", "same_id_camera", "sysu")


def draw(seed, q, g, d, kind, dtype):
    """Queries, gallery and their identities and cameras: generic, few distinct values, or few distinct rows."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "integers":
        query, gallery = (torch.randint(-2, 3, (n, d), generator=generator).to(dtype) for n in (q, g))
    else:
        query, gallery = (torch.randn(n, d, generator=generator).to(dtype) for n in (q, g))
    if kind == "duplicates":
        gallery = gallery[torch.randint(0, max(1, g // 9), (g,), generator=generator)]
        query[::2] = gallery[torch.randint(0, g, (len(query[::2]),), generator=generator)]
    people = 2 if kind == "two people" else 11
    labels = [torch.randint(0, people, (n,), generator=generator) for n in (q, g)]
    labels += [torch.randint(1, 5, (n,), generator=generator) for n in (q, g)]
    return query, gallery, *labels


def bounds(case, total, ranks):
    """Where each rank's rows begin: uneven; in every third case nearly all rows are on one rank and some have none."""
    if case % 3 == 0:
        return [0, *[total - 1 - case % 2] * (ranks - 1), total]
    if case % 3 == 1:
        return [0, *[total * r // (ranks + 1) for r in range(1, ranks)], total]
    return [0, *[total * (r + 1) // (ranks + 1) for r in range(1, ranks)], total]


def searches():
    """(arguments of draw, options); the gallery is cut by the number of the case."""
    for number, metric in enumerate(METRICS):
        for kind in ("generic", "integers", "duplicates"):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                yield (number, 9, 130, 12, kind, dtype), {"k": (1, 40, 130)[number % 3], "metric": metric}
        yield (number, 5, 5000, 40, "duplicates", torch.float32), {"k": 100, "metric": metric, "chunk": 999}
        yield (number, 20, 70, 7, "integers", torch.float16), {"k": 60, "metric": metric, "exclude": True}


def evaluations():
    for number, metric in enumerate(METRICS):
        for dtype in (torch.float32, torch.float64, torch.float16):
            for kind in ("generic", "integers", "duplicates"):
                for cmc in ("plain", "identity"):
                    options = {"metric": metric, "exclude": MODES[number], "cmc": cmc, "topk": 3 if number else 20}
                    yield (number + 7, 37, 230, 20, kind, dtype), options
        yield (
            (number, 150, 4500, 24, "generic", torch.float32),
            {"metric": metric, "exclude": "sysu", "cmc": "identity"},
        )
        yield (number, 3, 1500, 16, "two people", torch.float32), {"metric": metric, "exclude": "same_camera"}


def reranks():
    for number, metric in enumerate(("cosine", "euclidean", "sqeuclidean")):
        for dtype in (torch.float32, torch.float64, torch.float16):
            for kind in ("generic", "integers", "duplicates"):
                options = {"metric": metric, "k1": (20, 3, 400)[number], "k2": (6, 1, 2)[number]}
                yield (number, 9, 90, 12, kind, dtype), options
        yield (number, 30, 120, 8, "duplicates", torch.float32), {"metric": metric, "queries_only": True, "topk": 7}
        yield (number, 5, 60, 8, "generic", torch.float32), {"metric": metric, "queries_only": True}
        yield (number, 9, 70, 8, "generic", torch.float32), {"metric": metric, "method": "gnn", "k1": 8, "k2": 3}
        for dtype, topk in ((torch.float32, None), (torch.float16, 9)):
            yield (number, 30, 333, 24, "generic", dtype), {"metric": metric, "precision": "reference", "topk": topk}


def as_pair(result):
    return result if isinstance(result, tuple) else (result,)


def mask_of(query, gallery):
    return torch.arange(len(query))[:, None] % 4 == torch.arange(len(gallery)) % 5


def alone():
    """The results of one process."""
    results = []
    for case, options in searches():
        query, gallery = draw(*case)[:2]
        exclude = mask_of(query, gallery) if options.pop("exclude", False) else None
        results.append(search(query, gallery, exclude=exclude, **options))
    for case, options in evaluations():
        result = evaluate(*draw(*case), **options)
        results.append((result.cmc, result.ap, result.inp, torch.tensor([result.mean_ap, result.mean_inp])))
    for case, options in reranks():
        results.append(as_pair(rerank(*draw(*case)[:2], **options)))
    return results


def together(rank, ranks):
    """The same of the group, with the queries on every rank or on one."""
    results = []
    for number, (case, options) in enumerate(searches()):
        query, gallery, _, ids, _, cams = draw(*case)
        begin = bounds(number, len(gallery), ranks)
        own = slice(begin[rank], begin[rank + 1])
        shard = ShardedGallery(gallery[own], ids[own], cams[own] if number % 2 else None)
        assert (len(shard), shard.first) == (len(gallery), own.start)
        assert torch.equal(shard.ids, ids)
        assert shard.cams is None or torch.equal(shard.cams, cams)
        source = None if number % 2 else number // 2 % ranks
        if options.pop("exclude", False):
            mask = mask_of(query, gallery)
            options["exclude"] = mask if number % 2 else lambda q0, q1, g0, g1, mask=mask: mask[q0:q1, g0:g1]
        results.append(shard.search(query if source in (None, rank) else None, source=source, **options))
    for number, (case, options) in enumerate(evaluations()):
        query, gallery, query_ids, ids, query_cams, cams = draw(*case)
        begin = bounds(number, len(gallery), ranks)
        own = slice(begin[rank], begin[rank + 1])
        source = None if number % 2 else number // 2 % ranks
        result = ShardedGallery(gallery[own].numpy(), ids[own], cams[own]).evaluate(
            query if source in (None, rank) else None, query_ids, query_cams, source=source, **options
        )
        results.append((result.cmc, result.ap, result.inp, torch.tensor([result.mean_ap, result.mean_inp])))
    for number, (case, options) in enumerate(reranks()):
        query, gallery = draw(*case)[:2]
        begin = bounds(number, len(gallery), ranks)
        source = None if number % 2 else number // 2 % ranks
        shard = ShardedGallery(gallery[begin[rank] : begin[rank + 1]])
        results.append(as_pair(shard.rerank(query if source in (None, rank) else None, source=source, **options)))
    return results


def from_a_file(folder, rank, ranks):
    gallery = ShardedGallery.open(folder / "g.safetensors")
    whole = Gallery.open(folder / "g.safetensors")
    assert len(gallery.features) == len(whole) * (rank + 1) // ranks - len(whole) * rank // ranks
    query = whole.features[:5] + 0.25
    return [gallery.search(query, 4), gallery.evaluate(query, whole.ids[:5]).ap]


def errors(rank, ranks):
    """(type, message) of each call on this rank; the last rank is the one that does wrong, except where said."""
    odd = rank == ranks - 1
    rows, query, ids = torch.ones(3, 2), torch.ones(4, 2), torch.arange(4)
    good, bare = ShardedGallery(rows, torch.arange(3), torch.arange(3)), ShardedGallery(rows)
    tiny = ShardedGallery(rows * 1e-42, torch.arange(3))

    def broken(*tile):
        if odd:
            raise OSError("no mask")
        return torch.zeros(tile[1] - tile[0], tile[3] - tile[2]) > 0

    def exits():
        raise AssertionError("expected an error")

    calls = [
        lambda: ShardedGallery([1.0] if odd else rows),
        lambda: ShardedGallery(rows[:, : 2 - odd]),
        lambda: ShardedGallery(rows.double() if odd else rows),
        lambda: ShardedGallery(rows, torch.arange(3) if odd else None),
        lambda: ShardedGallery(rows[:0]),
        lambda: ShardedGallery(rows * torch.nan if odd else rows),
        lambda: ShardedGallery(rows[:, :0]),
        lambda: ShardedGallery(rows, group="world"),
        lambda: ShardedGallery.open("none.npy"),
        lambda: good.search(query, 0 if odd else 1),
        lambda: good.search(query, 3 * ranks + 1),
        lambda: good.search(query, 1 + odd),
        lambda: good.search(query, 1, metric="l2"),
        lambda: good.search(query, 1, chunk=0),
        lambda: good.search(query + rank, 1),
        lambda: good.search(query[: 4 - odd], 1),
        lambda: good.search(query[:0], 1),
        lambda: good.search(query * torch.inf if odd else query, 1),
        lambda: good.search(query.double(), 1),
        lambda: good.search(None, 1),
        lambda: good.search(query, 1, source=0),
        lambda: good.search(query, 1, source=ranks),
        lambda: good.search(query, 1, exclude=torch.ones(4, 2) > 0),
        lambda: good.search(query, 1, exclude=broken),
        lambda: bare.evaluate(query, ids),
        lambda: good.evaluate(query, ids[:3]),
        lambda: good.evaluate(query, ids + rank),
        lambda: good.evaluate(query, ids, exclude="sysu"),
        lambda: good.evaluate(query, ids, metric="l2"),
        lambda: good.evaluate(query, ids + 9),
        lambda: good.evaluate(query * 1e37, ids),
        lambda: tiny.evaluate(query * 1e-9, ids),
        lambda: good.rerank(query, k1=0),
        lambda: good.rerank(query, precision="half"),
        lambda: good.rerank(query, topk=3 * ranks + 1),
        lambda: good.rerank(query, k1=1 + rank),
        lambda: good.rerank(query * 1e19),
    ]
    told = []
    for call in calls:
        try:
            call()
        except Exception as error:
            told.append((type(error).__name__, str(error)))
        else:
            told.append(("", "no error"))
    return told


def received(ranks, call):
    """Bytes that a rank receives in a call: a broadcast once, of a gather all parts but its own, of a ring reduction
    2 (ranks - 1) / ranks of the tensor."""
    counted = [0.0]
    real = dist.broadcast, dist.all_gather, dist.all_reduce

    def broadcast(value, *arguments, **options):
        counted[0] += value.nbytes
        return real[0](value, *arguments, **options)

    def all_gather(parts, value, **options):
        counted[0] += sum(part.nbytes for part in parts) - value.nbytes
        return real[1](parts, value, **options)

    def all_reduce(value, **options):
        counted[0] += 2 * (ranks - 1) / ranks * value.nbytes
        return real[2](value, **options)

    dist.broadcast, dist.all_gather, dist.all_reduce = broadcast, all_gather, all_reduce
    try:
        call()
    finally:
        dist.broadcast, dist.all_gather, dist.all_reduce = real
    return counted[0]


def wire(rank, ranks):
    """Bytes received for 20 queries more, each with 8 positives, in a gallery of 40 identities."""
    gallery = ShardedGallery(torch.randn(320 // 2, 6).half(), torch.arange(160) % 40, torch.arange(160))
    query, ids = torch.randn(60, 6).half(), torch.arange(60) % 40
    dist.broadcast(query, 0)

    def more(call):
        return received(ranks, lambda: call(60)) - received(ranks, lambda: call(40))

    own = {n: query[:n] if rank == 0 else None for n in (40, 60)}
    rows = sharded_rerank.ShardedFeatures(gallery._wire, query, gallery.features, gallery._counts, "euclidean")
    pairs = torch.arange(len(rows.query) + len(gallery) + 1) * 3, torch.arange(3).int().repeat(rows.rows)
    return {
        "search": more(lambda n: gallery.search(query[:n], 7)),
        "search, queries sent": more(lambda n: gallery.search(own[n], 7, source=0)),
        "evaluate": more(lambda n: gallery.evaluate(query[:n], ids[:n])),
        "evaluate, queries sent": more(lambda n: gallery.evaluate(own[n], ids[:n], source=0)),
        "rerank, lists": received(ranks, lambda: rows.lists(9, False, True)),
        "rerank, pairs": received(ranks, lambda: rows.entries(*pairs)),
        "rerank, reference": received(ranks, rows.gathered),
        "identity": more(lambda n: gallery.evaluate(query[:n], ids[:n], cmc="identity", topk=5)),
    }


def main(folder, rank, ranks):
    torch.set_num_threads(1)
    products.LEAST_ROWS, products.WORKSPACE, sharded.QUERIES = 16, 1, 8
    sharded_rerank.ROWS, sharded_rerank.COLUMNS = 16, 20
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=ranks)
    results = {"equal": together(rank, ranks), "errors": errors(rank, ranks), "file": from_a_file(folder, rank, ranks)}
    products.LEAST_ROWS, sharded.QUERIES, sharded_rerank.ROWS = 64, 4096, 4096
    results["wire"] = wire(rank, ranks)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
