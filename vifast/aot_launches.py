"""What every launcher is called with to be compiled ahead of time, see ``vifast.aot``: tensors without memory."""

import torch
from torch import Tensor


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _doubles(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device="meta")


def _temperatures(*temperatures: float) -> tuple[list[float], list[float]]:
    return list(temperatures), [0.9] * len(temperatures)


def _indices(n: int) -> Tensor:
    return torch.empty(n, dtype=torch.int64, device="meta")


def _mined(n: int) -> tuple[Tensor, ...]:
    return _floats(n), _floats(n), _indices(n), _indices(n)


SMALL, LARGE, WIDTH = 64, 1024, 2048  # rows below and above the change of block size, columns of a ResNet-50
_SELF = (_floats(LARGE, WIDTH), _indices(LARGE), None, None)
_OTHER = (_floats(SMALL, 70), _indices(SMALL), _floats(SMALL, 70), _indices(SMALL))
_HALF = (_SELF[0].bfloat16(), *_SELF[1:])
_LOGITS = (_floats(120, 395), _floats(120, 395))
_HALF_LOGITS = tuple(x.bfloat16() for x in _LOGITS)
_FEATURES = (_floats(SMALL, WIDTH), _floats(SMALL, WIDTH))
_DAKD = _temperatures(2.0, 3.0, 4.0, 5.0, 6.0)
_TABLES = [1.0] * 5 + [0.0] * 5, [0.0] * 5 + [1.0] * 5
_OTHER_WIDTH = _floats(LARGE, 70)
_TABLE = _floats(713, 768)
_GRAPH = (_doubles(6, LARGE), _floats(0), _floats(0))
_NEIGHBORS = (_floats(LARGE), _floats(3, LARGE), _floats(0), _floats(0))
_WRT = (_floats(LARGE), _floats(7, LARGE), _floats(0), _floats(0))

_MAP = _floats(8, WIDTH, 24, 9)
_LAST = _MAP.bfloat16().contiguous(memory_format=torch.channels_last)
_ROWS = (_floats(8, WIDTH), _floats(8, WIDTH), _floats(WIDTH), _floats(WIDTH))

_IMAGES = torch.empty(64, 256, 128, 3, dtype=torch.uint8, device="meta")
_JITTERED = (_IMAGES, _floats(64, 2), _indices(64).bool(), torch.empty(64, 11, dtype=torch.int32, device="meta"))

_CELLS = (_floats(64, 3, 256, 128), _indices(64))
_PROMPTS = [(16, 8), (0, 8), (16, 0)]  # specific and common columns


def _rows(specific: int, common: int) -> int:
    return 2 * specific + common


def _prompted(s: int, c: int) -> tuple[Tensor, ...]:
    """Values, modality, weight and bias of an insertion, and a seed."""
    bias = _floats(2 * (s > 0) + (c > 0), 768)
    return _floats(64, s + c, 128), _CELLS[1], _floats(768, _rows(s, c)), bias, _indices(1)[0]


def _mixed(s: int, c: int) -> tuple[Tensor | None, ...]:
    """Hidden planes, modality, mean and rstd, weight and bias, and the gates of a mixture."""
    gates = 2 * (_floats(2, c), _floats(c, 2)) if c else (None,) * 4
    rows = _floats(_rows(s, c))
    return _floats(64, s + c, 128), _CELLS[1], *2 * (_floats(64, s + c),), rows, rows, *gates


def _running(s: int, c: int) -> tuple[Tensor | None, ...]:
    own = (_floats(s), _floats(s), _indices(1)[0]) if s else (None,) * 3
    return *own, *own, *(2 * (_floats(c),) if c else (None, None))


# Arguments of each op's CUDA launcher that together reach every kernel and every branch fixed at compile time.
LAUNCHES = {
    "class_centers": [
        (*x, 100) for x in (_SELF[:2], _HALF[:2], (_FEATURES[0], _indices(SMALL)), (_OTHER[0].bfloat16(), _OTHER[1]))
    ],
    "class_centers_backward": [(_floats(100, width), _indices(SMALL), _indices(100)) for width in (WIDTH, 70)],
    "center_loss": [
        (x, _indices(len(x)), x.new_empty(100, x.size(1))) for x in (_SELF[0], _FEATURES[0], _OTHER[0].bfloat16())
    ],
    "center_loss_backward": [
        (_floats(), x, _indices(len(x)), x.new_empty(100, x.size(1)), *wanted)
        for x in (_SELF[0], _FEATURES[0], _OTHER[0].bfloat16())
        for wanted in ((True, True), (True, False), (False, True))
    ],
    "row_centers": [_SELF[:2]],
    "memory_update": [
        (_floats(4, 395, WIDTH), _floats(3, 32, WIDTH), _indices(32), 0.25, 0.1),
        (_floats(2, 7, 70), _floats(1, LARGE, 70).bfloat16(), _indices(LARGE), 0.25, 0.1),
    ],
    "center_hinge": [
        (*2 * (x,), *2 * (_indices(len(x)),), 0.0) for x in (_SELF[0], _FEATURES[0], _OTHER[0].bfloat16())
    ],
    "center_hinge_backward": [
        (_floats(), *2 * (x,), *2 * (_indices(len(x)),), 0.0) for x in (_SELF[0], _FEATURES[0], _OTHER[0].bfloat16())
    ],
    "center_cluster": [(_floats(n, WIDTH), _indices(n), 0.7, "exact") for n in (128, 64, 32, 16)]
    + [(_floats(20, 70).bfloat16(), _indices(20), 0.7, "exact")],
    "center_cluster_backward": [
        (_floats(), _floats(n), _floats(n, n), _floats(n, WIDTH), _indices(n), 0.7, "exact") for n in (128, 64, 32, 16)
    ],
    "center_triplet": [
        (*2 * (_floats(n, 768),), _indices(n), 0.1, 0.5, symmetric, "exact")
        for n in (128, 64, 32, 16)
        for symmetric in (False, True)
    ]
    + [(*2 * (_floats(20, 70).bfloat16(),), _indices(20), 0.1, 0.5, False, "exact")],
    "center_triplet_backward": [
        (_floats(), _floats(4, 2, n), _indices(8 * n).view(4, 2, n), *2 * (_floats(n, 768),), _indices(n), 0.1, 0.5, s)
        for n in (128, 64, 32, 16)
        for s in (False, True)
    ],
    "graph_alignment": [
        (_SELF[0], _OTHER_WIDTH, None, 1e-6, False, True, "exact", "mean", 1.0),
        (_HALF[0], _HALF[0], -5.0, 0.0, True, False, "fast", "none", 1.0),
    ]
    + [
        call
        for n in (128, 64, 32, 16)
        for call in (
            (*2 * (_floats(n, WIDTH),), None, 1e-6, False, True, "exact", "mean", 1.0),
            (*2 * (_floats(n, 700).bfloat16(),), -5.0, 0.0, True, False, "fast", "none", 1.0),
        )
    ],
    "graph_alignment_backward": [
        (_floats(), *_GRAPH, _SELF[0], _OTHER_WIDTH, None, 1e-6, False, True, "exact", "mean", 1.0, True, True),
        (_floats(LARGE), *_GRAPH, _HALF[0], _HALF[0], -5.0, 0.0, True, False, "fast", "none", 1.0, True, False),
        (_floats(), *_GRAPH, _SELF[0], _SELF[0], None, 1e-6, False, False, "exact", "mean", 1.0, False, True),
    ]
    + [
        (grad, _doubles(6, n), *2 * (_floats(n, n),), *2 * (rows,), *options, reduction, 1.0, True, both)
        for n in (128, 64, 32, 16)
        for grad, rows, options, reduction, both in (
            (_floats(), _floats(n, WIDTH), (None, 1e-6, False, True, "exact"), "mean", True),
            (_floats(n), _floats(n, 700).bfloat16(), (-5.0, 0.0, True, False, "fast"), "none", False),
        )
    ],
    "relation_alignment": [
        call
        for n in (128, 64, 32, 16)
        for call in (
            (*2 * (_floats(n, WIDTH),), None, 0.1, "exact"),
            (*2 * (_floats(n, 700).bfloat16(),), _indices(n).bool(), 0.1, "fast"),
        )
    ],
    "relation_alignment_backward": [
        (
            _floats(),
            _doubles(6, n),
            *2 * (_floats(n, n),),
            *2 * (_floats(0, 0),),
            _floats(n),
            *2 * (rows,),
            keep,
            0.1,
            how,
        )
        for n in (128, 64, 32, 16)
        for rows, keep, how in (
            (_floats(n, WIDTH), None, "exact"),
            (_floats(n, 700).bfloat16(), _indices(n).bool(), "fast"),
        )
    ],
    "prototype_alignment": [
        (_SELF[0], _SELF[0], _floats(100, WIDTH), 0.1, 10.0, True),
        (_HALF[0], _HALF[0], _floats(100, WIDTH).bfloat16(), 0.1, 10.0, True),
        *[(*2 * (_floats(n, 768),), _TABLE, 0.1, 10.0, True) for n in (128, 64, 32, 16)],
        (*2 * (_floats(20, 70).bfloat16(),), _floats(20, 70).bfloat16(), 0.1, 10.0, False),
        (*2 * (_floats(50, 70).bfloat16(),), _floats(20, 70).bfloat16(), 0.1, 10.0, False),
    ],
    "prototype_alignment_backward": [
        (_floats(), slope, *2 * (_floats(0),), rows, table, 0.1, 10.0)
        for slope, rows, table in (
            (_floats(LARGE, 100), _HALF[0], _floats(100, WIDTH).bfloat16()),
            (_floats(LARGE, 100), _SELF[0], _floats(100, WIDTH)),
            (_floats(20, 20), *2 * (_floats(20, 70).bfloat16(),)),
        )
    ]
    + [
        (_floats(), _floats(n, 713), _floats(713), _doubles(6 + n, n), _floats(n, 768), _TABLE, 0.1, 10.0)
        for n in (128, 64)
    ],
    "batch_hard": [
        (*_SELF, "euclidean", 0.3, "exact", "mean"),
        (*_SELF, "euclidean", 0.3, "fast", "mean"),
        (*_HALF, "cosine", None, "exact", "none"),
        *[(_floats(n, WIDTH), _indices(n), None, None, "euclidean", 0.3, "exact", "mean") for n in (128, 64, 32, 16)],
        (*_OTHER, "sqeuclidean", 0.3, "exact", "mean"),
        (_floats(128, 768).bfloat16(), _indices(128), None, None, "cosine", None, "fast", "none"),
    ],
    "batch_hard_backward": [
        (_floats(LARGE), None, None, _SELF[0], None, *_mined(LARGE), "euclidean", 0.3, "none"),
        (_floats(), None, None, _FEATURES[0], None, *_mined(SMALL), "euclidean", 0.3, "mean"),
        (None, _floats(LARGE), None, _HALF[0], None, *_mined(LARGE), "cosine", None, "none"),
        (_floats(), _floats(SMALL), _floats(SMALL), _OTHER[0], _OTHER[2], *_mined(SMALL), "euclidean", None, "sum"),
    ],
    "gem_pool": [
        (_MAP, None, 3.0, 1e-6, True),
        (_LAST, None, 3.0, 1e-12, False),
        (_MAP, _floats(), 0.0, 1e-6, True),
    ],
    "gem_pool_backward": [
        (_ROWS[0], _MAP, _ROWS[0], None, 3.0, 1e-6, True),
        (_ROWS[0], _LAST, _ROWS[0], None, 3.0, 1e-12, False),
        (_ROWS[0], _MAP, _ROWS[0], _floats(), 0.0, 1e-6, True),
    ],
    "instance_stats": [(_MAP,), (_LAST,)],
    "neighbor_loss": [
        (*_SELF, "euclidean", 1.0, "exact", "mean"),
        (*_HALF, "cosine", 0.1, "fast", "none"),
        (*2 * _SELF[:2], "cosine", 0.1, "exact", "mean"),
        (_floats(256, WIDTH), _indices(256), None, None, "euclidean", 1.0, "exact", "mean"),
        *[
            (_floats(n, WIDTH), _indices(n), *to, metric, 0.1, "exact", "mean")
            for n in (128, 64, 32, 16)
            for metric, to in (("euclidean", (None, None)), ("cosine", (_floats(n, WIDTH), _indices(n))))
        ],
        (_floats(128, 768).bfloat16(), _indices(128), None, None, "sqeuclidean", 1.0, "fast", "none"),
    ],
    "neighbor_loss_backward": [
        (*_NEIGHBORS, *_SELF, "euclidean", 1.0, "exact", "none", True, False),
        (*_NEIGHBORS, *_HALF, "cosine", 0.1, "fast", "none", True, False),
        (*_NEIGHBORS, *2 * _SELF[:2], "euclidean", 0.1, "exact", "none", True, True),
        *[
            (_floats(), _floats(3, n), _floats(0), _floats(n, n), _floats(n, WIDTH), _indices(n), *to, *how)
            for n in (128, 64, 32, 16)
            for to, how in (
                ((None, None), ("euclidean", 1.0, "exact", "mean", True, False)),
                ((_floats(n, WIDTH), _indices(n)), ("cosine", 0.1, "exact", "mean", True, True)),
                ((_floats(n, WIDTH), _indices(n)), ("euclidean", 1.0, "fast", "none", False, True)),
            )
        ],
    ],
    "pairwise_distance": [
        (_SELF[0], None, 1e-12, True, "exact"),
        (_HALF[0], None, 1e-12, True, "fast"),
        (_OTHER[0], _OTHER[2], 0.0, False, "exact"),
    ],
    "prompt_consistency": [(_MAP, _MAP), (_LAST, _MAP)],
    "prompt_consistency_backward": [(_floats(), _MAP, _MAP), (_floats(), _LAST, _MAP)],
    "prompt_hidden": [
        (x, _CELLS[1], _floats(_rows(s, c), 768), _floats(_rows(s, c)), s, 16)
        for x, (s, c) in ((_CELLS[0], (16, 8)), (_CELLS[0].bfloat16(), (0, 8)))
    ],
    "prompt_hidden_backward": [
        (_floats(64, s + c, 128), x, _CELLS[1], _floats(_rows(s, c), 768), s, 16, True)
        for x, (s, c) in ((_CELLS[0], (16, 8)), (_CELLS[0].bfloat16(), (0, 8)))
    ],
    "prompt_insertion": [(_CELLS[0], *_prompted(*widths), 0.1, 16) for widths in _PROMPTS]
    + [(_CELLS[0].bfloat16(), *_prompted(16, 8)[:4], None, 0.0, 16)],
    "prompt_insertion_backward": [(*2 * (_CELLS[0],), *_prompted(*widths), 0.1, 16) for widths in _PROMPTS]
    + [(_CELLS[0].bfloat16(), None, *_prompted(16, 8)[:4], None, 0.0, 16)],
    "prompt_mixture": [(*_mixed(*widths), True, True) for widths in _PROMPTS],
    "prompt_mixture_backward": [
        (_floats(64, s + c, 128), *_mixed(s, c), *flags)
        for (s, c), flags in zip((*_PROMPTS, _PROMPTS[0]), (*3 * ((True, True),), (False, False)), strict=True)
    ],
    "prompt_statistics": [
        (_floats(64, s + c, 128), _CELLS[1], *_running(s, c), *flags, 1e-5, 0.1)
        for s, c in _PROMPTS
        for flags in ((True, True), (False, True), (False, False))
    ],
    "purifier": [(*[_MAP] * 3, *_ROWS, True), (*[_LAST] * 3, *_ROWS, True)],
    "purifier_backward": [
        (_floats(5, 8, WIDTH), _floats(5, 8, WIDTH), *[_MAP] * 3, *_ROWS, True),
        (_floats(5, 8, WIDTH), _floats(5, 8, WIDTH), *[_LAST] * 3, *_ROWS, False),
    ],
    "symmetric_kl": [(*_LOGITS, 120), (*_HALF_LOGITS, 5)],
    "symmetric_kl_backward": [
        (_floats(120), _doubles(4, 120), *_LOGITS, 120),
        (_floats(5), _doubles(4, 5), *_HALF_LOGITS, 5),
    ],
    "entropy_hinge": [(*_LOGITS, 0.0), (*_HALF_LOGITS, 0.0)],
    "entropy_hinge_backward": [
        (_floats(120), _doubles(5, 120), *_LOGITS),
        (_floats(120), _doubles(5, 120), *_HALF_LOGITS),
    ],
    "standardized_kl": [
        (*_FEATURES, _floats(SMALL, 5), *_DAKD, True, 1, 1e-7, True),
        (*_LOGITS, _floats(120, 1), *_DAKD, True, 1, 1e-7, True),
        (*_HALF_LOGITS, None, *_temperatures(4.0), False, 1, 1e-7, False),
        (*2 * (_floats(SMALL, 5000),), _floats(SMALL, 5), *_DAKD, True, 1, 1e-7, True),
        (*2 * (_floats(SMALL, 5000).bfloat16(),), None, *_temperatures(4.0), False, 1, 1e-7, True),
    ],
    "decoupled_kl": [
        (*rows, _indices(len(rows[0])), 1.0, 8.0, 4.0, reduction, slope)
        for rows in (_LOGITS, _HALF_LOGITS, 2 * (_floats(LARGE, 5000),))
        for reduction, slope in (("mean", True), ("none", True), ("mean", False))
    ],
    "percentile_mask": [(_floats(SMALL), 50.0, True), (_floats(LARGE), 50.0, False)],
    "augment": [
        (_IMAGES, torch.empty(64, 22, dtype=torch.int32, device="meta"), *3 * ([0.5] * 3,), 0, dtype, last)
        for dtype in (torch.float32, torch.bfloat16)
        for last in (False, True)
    ],
    "blur_jitter": [_JITTERED],
    "class_logits": [(*2 * (_OTHER_WIDTH,), *2 * (_floats(100, 70),), 32, 0.05)],
    "class_logits_backward": [(_floats(LARGE, 100), *2 * (_floats(100, 70),), 32, 0.05)],
    "confidence_weights": [
        (_LOGITS[0], None, None, 60, "percentile", 50.0, True, *_TABLES, True, False),
        (_floats(LARGE, 395), _floats(LARGE), None, 32, "percentile", 50.0, False, *_TABLES, False, True),
        (_LOGITS[0], None, None, 60, "fixed", 0.95, True, *_TABLES, True, False),
        (_LOGITS[0], _floats(120), _floats(), 60, "ema", 0.999, True, *_TABLES, True, True),
        (_LOGITS[0], None, None, 60, "none", 0.0, True, *_TABLES, True, False),
    ],
    "softmax_confidence": [(_LOGITS[0],), (_HALF_LOGITS[0],)],
    "unit_rows": [(_FEATURES[0],), (_HALF_LOGITS[0],)],
    "unit_pair": [(_FEATURES[0], _SELF[0]), (_HALF_LOGITS[0],) * 2],
    "unit_pair_backward": [(_FEATURES[0], _SELF[0]) * 2, (*_LOGITS, *_HALF_LOGITS)],
    "unit_rows_backward": [(_FEATURES[0],) * 2, (_LOGITS[0], _HALF_LOGITS[0])],
    "weighted_triplet": [
        (*_SELF[:2], False, "exact", "mean"),
        (*_HALF[:2], True, "fast", "none"),
        *[(_floats(n, WIDTH), _indices(n), False, "exact", "mean") for n in (128, 64, 32, 16)],
        (_floats(128, 768).bfloat16(), _indices(128), True, "fast", "none"),
    ],
    "weighted_triplet_backward": [
        (*_WRT, *_SELF[:2], False, "exact", "none"),
        (*_WRT, *_HALF[:2], True, "fast", "none"),
        *[
            (_floats(), _floats(7, n), _floats(0), _floats(n, n), x, _indices(n), stable, "exact", "mean")
            for n, x, stable in (
                *((n, _floats(n, WIDTH), False) for n in (128, 64, 32, 16)),
                (128, _floats(128, 768).bfloat16(), True),
            )
        ],
    ],
}
