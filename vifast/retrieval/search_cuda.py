"""Search on a GPU: products of float32 nominate, the kernels of csrc/cuda/topk.cu keep and decide."""

import torch
from torch import Tensor

from vifast.kernels._extension import _CUDA
from vifast.retrieval.products import keyed_rows, moved, norms, origin_of

MOST = 2048  # neighbours whose candidates fit the shared memory of every supported card
STATE = 64 * 2**20  # bytes of candidates of the queries that are searched together
TILE = 256 * 2**20  # bytes of products that exist at a time
MOST_QUERIES = 4096
# Share of a row's norm that a product may lose by reading its numbers as tf32 (10 bits, cut off) or bfloat16 (8 bits,
# rounded). All settings of torch.set_float32_matmul_precision give the same answer.
LOST = {"highest": 2.0**-10, "high": 2.0**-10, "medium": 2.0**-8}


def can_search_cuda(query: Tensor, k: int) -> bool:
    return query.device.type == "cuda" and _CUDA is not None and k <= MOST


def search_cuda(query, gallery, k, metric, excluded, chunk) -> tuple[Tensor, Tensor]:
    """float64 keys (smaller is nearer) and rows of finite features; ``excluded`` gives the mask of a tile."""
    query, gallery = query.contiguous(), gallery.contiguous()
    kind = "sqeuclidean" if metric == "euclidean" else metric
    room = 1 << (max(2 * k, k + _CUDA.TOPK_BLOCK) - 1).bit_length()
    step = max(1, min(MOST_QUERIES, STATE // (room * 16)))
    blocks = [
        _search_block(query[start : start + step], gallery, k, kind, excluded, start, chunk, room)
        for start in range(0, len(query), step)
    ]
    key, index = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return key, index


def _search_block(query, gallery, k, kind, excluded, start, chunk, room):
    suffix = str(gallery.dtype).removeprefix("torch.")
    fold, finish = getattr(_CUDA, f"topk_fold_{suffix}"), getattr(_CUDA, f"topk_finish_{suffix}")
    stream = torch.cuda.current_stream(query.device).cuda_stream
    lost = LOST[torch.get_float32_matmul_precision()]
    exact = query if query.dtype == torch.float64 else query.float()
    origin = origin_of(query) if kind == "sqeuclidean" else None
    keyed = keyed_rows(exact, kind, origin)
    norm = norms(keyed)
    n = len(query)
    key = exact.new_full((n, room), torch.inf, dtype=torch.float64)
    index = torch.full((n, room), -1, device=query.device)
    count, settled = (index.new_zeros(n, dtype=torch.int32) for _ in range(2))
    state = key, index, count, settled
    width = min(chunk or max(1024, TILE // (4 * n)), len(gallery))
    for first in range(0, len(gallery), width):
        rows = moved(gallery[first : first + width], origin)
        other = norms(rows)
        tile = torch.mm(keyed, rows.T)
        mask = excluded(start, start + n, first, first + len(rows))
        fold(tile, first, kind, exact, norm, norm * lost, gallery, other, other * lost, mask, k, *state, stream)
    finish(kind, exact, gallery, k, *state, stream)
    missing = torch.arange(k, device=query.device) >= count.unsqueeze(1)
    return key[:, :k].masked_fill(missing, torch.inf), index[:, :k].masked_fill(missing, -1)
