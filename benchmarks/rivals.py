"""What users have today, written plainly: the providers that vifast is timed against.

Packages from PyPI are used where they exist (pytorch-metric-learning, faiss); the rest is the usual eager code.
"""

import numpy as np
import torch
from torch.nn.functional import softplus


def distances(feat):
    sq = feat.square().sum(1, keepdim=True)
    return (sq + sq.T - 2 * feat @ feat.T).clamp(min=1e-12).sqrt()


def triplet_dense(feat, labels, margin=0.3):
    """Batch-hard over the N x N matrix, kept for the backward: the form most repositories carry."""
    dist, same = distances(feat), labels[:, None] == labels
    d_pos = dist.masked_fill(~same, -torch.inf).amax(1)
    d_neg = dist.masked_fill(same, torch.inf).amin(1)
    return (d_pos - d_neg + margin).relu().mean()


def triplet_gather(feat, labels, margin=0.3):
    """The better eager form: mine without gradient, then differentiate two pairs a row."""
    with torch.no_grad():
        dist, same = distances(feat), labels[:, None] == labels
        i_pos = dist.masked_fill(~same, -torch.inf).argmax(1)
        i_neg = dist.masked_fill(same, torch.inf).argmin(1)
    d_pos = (feat - feat[i_pos]).square().sum(1).clamp(min=1e-12).sqrt()
    d_neg = (feat - feat[i_neg]).square().sum(1).clamp(min=1e-12).sqrt()
    return (d_pos - d_neg + margin).relu().mean()


def triplet_pml():
    from pytorch_metric_learning import losses, miners

    miner, loss = miners.BatchHardMiner(), losses.TripletMarginLoss(margin=0.3)
    return lambda feat, labels: loss(feat, labels, miner(feat, labels))


def weighted_dense(feat, labels):
    """WRT with true softmaxes over the N x N matrix."""
    dist, same = distances(feat), labels[:, None] == labels
    w_pos = torch.softmax(dist.masked_fill(~same, -torch.inf), 1)
    w_neg = torch.softmax((-dist).masked_fill(same, -torch.inf), 1)
    return softplus((w_pos * dist).sum(1) - (w_neg * dist).sum(1)).mean()


def evaluate_by_sorting(dist, query_ids, gallery_ids, query_cams, gallery_cams):
    """Plain CMC, mAP and mINP of the SYSU protocol: argsort of the matrix, then a loop over queries."""
    order = np.argsort(dist, axis=1)
    hits, precision, penalty = [], [], []
    for q in range(len(dist)):
        keep = ~((query_cams[q] == 3) & (gallery_cams[order[q]] == 2))
        match = (gallery_ids[order[q]] == query_ids[q])[keep]
        if not match.any():
            continue
        rank = np.flatnonzero(match) + 1
        hits.append(rank[0])
        precision.append((np.arange(1, len(rank) + 1) / rank).mean())
        penalty.append(len(rank) / rank[-1])
    cmc = (np.asarray(hits)[:, None] <= np.arange(1, 21)).mean(0)
    return cmc, float(np.mean(precision)), float(np.mean(penalty))


def search_matmul(query, gallery, k, chunk=1000):
    """torch.mm and topk over blocks of queries."""
    best = [(query[i : i + chunk] @ gallery.T).topk(k, dim=1) for i in range(0, len(query), chunk)]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


def search_faiss(query, gallery, k):
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.numpy())
    return index.search(query.numpy(), k)
