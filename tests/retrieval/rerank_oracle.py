"""k-reciprocal re-ranking, literally: an N x N matrix, a loop over rows, NumPy scalars. float32 or float16 weights."""

import numpy as np


def squared_distances(x):
    """float32 ``||a||^2 + ||b||^2 - 2 a.b`` of rows with rows."""
    import torch

    x = torch.as_tensor(x, dtype=torch.float32)
    sq = x.square().sum(1)
    return (sq[:, None] + sq - 2 * (x @ x.T)).numpy()


def ranking(dist, num_query, masked):
    """All rows in the order of their distance from every row, ties by lower index; gallery rows last where masked."""
    seen = dist.T.copy()
    if masked:
        seen[:, num_query:] = seen.max()
    return np.argsort(seen, axis=1, kind="stable")


def reciprocal(order, i, k):
    return [j for j in order[i, : k + 1] if i in order[j, : k + 1]]


def expanded(order, i, k1):
    base = reciprocal(order, i, k1)
    members = set(base)
    for candidate in base:
        own = reciprocal(order, candidate, round(k1 / 2))
        if len(set(own) & set(base)) > 2 / 3 * len(own):
            members |= set(own)
    return sorted(members)


def rerank(dist, num_query, k1, k2, lam, masked=False, half=False):
    """[Q, G] from a float32 N x N matrix, where the distance of row i to row j is ``dist[j, i]``."""
    n, kind = len(dist), np.float16 if half else np.float32
    most = dist.max(0)
    original = np.divide(dist, most, out=np.zeros_like(dist), where=most > 0).T
    order = ranking(dist, num_query, masked)
    v = np.zeros((n, n), kind)
    for i in range(n):
        members = expanded(order, i, k1)
        weight = np.exp(-original[i, members])
        v[i, members] = weight / weight.sum()
    if k2 != 1:
        v = np.stack([v[order[i, :k2]].mean(0, dtype=np.float32).astype(kind) for i in range(n)])
    jaccard = np.empty((num_query, n), kind)
    for i in range(num_query):
        shared = np.zeros(n, kind)
        for c in np.flatnonzero(v[i]):
            shared += np.minimum(v[i, c], v[:, c])
        jaccard[i] = 1 - shared / (2 - shared)
    blend = (jaccard * kind(1 - lam)).astype(np.float32) + original[:num_query] * np.float32(lam)
    return blend[:, num_query:]


def graph(dist, cosine, num_query, k1, k2, alpha):
    """Graph convolution with dense float64 matrices."""
    n = len(dist)
    order = np.argsort(dist, axis=1, kind="stable")
    a, w = np.zeros((n, n)), np.zeros((n, n))
    for i in range(n):
        a[i, order[i, :k1]] = 1
        w[i, order[i, :k2]] = np.maximum(cosine[i, order[i, :k2]], 0) ** alpha
    h = (a + a.T) / 2
    for _ in range(2):
        h = w @ h
        length = np.linalg.norm(h, axis=1, keepdims=True)
        h /= np.where(length > 0, length, 1)
    return 1 - h[:num_query] @ h[num_query:].T
