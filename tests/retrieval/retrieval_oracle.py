"""Slow, literal versions of the retrieval calls in plain Python."""

import numpy as np


def dropped(mode, query_id, gallery_id, query_cam, gallery_cam):
    return {
        "none": False,
        "same_camera": query_cam == gallery_cam,
        "same_id_camera": query_id == gallery_id and query_cam == gallery_cam,
        "sysu": query_cam == 3 and gallery_cam == 2,
    }[mode]


def evaluate(dist, query_ids, gallery_ids, query_cams, gallery_cams, exclude, cmc, topk):
    """Returns (cmc, ap, inp), or None where no query is valid."""
    ap, inp, first = [], [], []
    for q, row in enumerate(dist):
        order = sorted(range(len(row)), key=lambda j: (row[j], j))
        ids = [
            gallery_ids[j]
            for j in order
            if not dropped(exclude, query_ids[q], gallery_ids[j], query_cams[q], gallery_cams[j])
        ]
        ranks = [r + 1 for r, identity in enumerate(ids) if identity == query_ids[q]]
        if not ranks:
            ap.append(np.nan)
            inp.append(np.nan)
            continue
        ap.append(sum((k + 1) / r for k, r in enumerate(ranks)) / len(ranks))
        inp.append(len(ranks) / ranks[-1])
        listed = list(dict.fromkeys(ids)) if cmc == "identity" else ids
        first.append(listed.index(query_ids[q]) + 1)
    if not first:
        return None
    return [sum(f <= k for f in first) / len(first) for k in range(1, topk + 1)], np.array(ap), np.array(inp)


def neighbours(query, gallery, k, metric, exclude):
    """Returns (dist, index) from float64 sums over the rows, one pair at a time."""
    dist, index = np.empty((len(query), k)), np.empty((len(query), k), dtype=np.int64)
    for q, a in enumerate(np.asarray(query, dtype=np.float64)):
        keys = []
        for j, b in enumerate(np.asarray(gallery, dtype=np.float64)):
            if exclude is not None and exclude[q, j]:
                continue
            norms = np.sqrt((a @ a) * (b @ b))
            value = {
                "dot": -(a @ b),
                "cosine": 1 - (np.clip(a @ b / norms, -1, 1) if norms > 0 else 0.0),
            }.get(metric, ((a - b) ** 2).sum())
            keys.append((value, j))
        keys = (sorted(keys) + [(np.inf, -1)] * k)[:k]
        dist[q], index[q] = [key for key, _ in keys], [j for _, j in keys]
    if metric == "euclidean":
        dist = np.sqrt(dist)
    return (-dist if metric == "dot" else dist), index
