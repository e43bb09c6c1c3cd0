"""What users have today, written plainly: the providers that vifast is timed against.

Packages from PyPI are used where they exist (pytorch-metric-learning, faiss); the rest is the usual eager code.
"""

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div, normalize, softplus


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


def info_nce_dense(feat, labels, temperature=0.1):
    """Supervised InfoNCE over the N x N matrix of cosines, the usual way."""
    unit = normalize(feat)
    logits = unit @ unit.T / temperature
    logits = logits - logits.amax(1, keepdim=True).detach()
    others = 1 - torch.eye(len(feat), device=feat.device)
    positive = (labels[:, None] == labels) * others
    log_p = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    count = positive.sum(1)
    return (-(positive * log_p).sum(1) / count - count.log()).mean()


def info_nce_pml():
    from pytorch_metric_learning import losses

    return losses.SupConLoss(temperature=0.1)


def _off_diagonal(matrix):
    n = len(matrix)
    return matrix.flatten()[:-1].view(n - 1, n + 1)[:, 1:].reshape(n, n - 1)


def _divergence(target, source):
    return (target.exp() * (target - source)).sum(1).mean()


def graph_alignment(a, b):
    """Symmetric divergence of two distance graphs over their N x N matrices."""
    u, v = (_off_diagonal(distances(x)).log_softmax(1) for x in (a, b))
    return _divergence(v, u) + _divergence(u, v)


def relation_alignment(student, teacher, temperature=0.1):
    unit = [torch.nn.functional.normalize(x) for x in (student, teacher)]
    new, old = (_off_diagonal(x @ x.T / temperature).log_softmax(1) for x in unit)
    return temperature**2 * _divergence(old, new)


def center_cluster(feat, labels, margin=60.0):
    """Centers in a loop over identities, the usual way."""
    centers = torch.stack([feat[labels == k].mean(0) for k in labels.unique()])
    codes = labels.unique(return_inverse=True)[1]
    pull = (feat - centers[codes]).norm(dim=1).mean()
    hinge = (margin - distances(centers)).relu() * (1 - torch.eye(len(centers), device=feat.device))
    return pull + hinge.sum() / max(1, len(centers) * (len(centers) - 1))


def prototype_alignment(student, teacher, prototypes, tau=0.1, kappa=10.0):
    normalize = torch.nn.functional.normalize

    def affinity(feat):
        relation = normalize((normalize(feat) @ normalize(prototypes).T / tau).softmax(1))
        return (kappa * relation @ relation.T).log_softmax(1)

    return _divergence(affinity(teacher), affinity(student))


def center_triplet(feat_v, feat_i, labels, margin=0.1, sample_weight=0.5):
    """Four dense batch-hard terms; identities stand in runs of four rows."""
    center_v, center_i = (x.view(-1, 4, x.size(1)).mean(1) for x in (feat_v, feat_i))
    ids = labels[::4]

    def mined(anchors, own, reference, theirs):
        sq = anchors.square().sum(1, keepdim=True) + reference.square().sum(1) - 2 * anchors @ reference.T
        dist, same = sq.clamp(min=1e-12).sqrt(), own[:, None] == theirs
        d_pos = dist.masked_fill(~same, -torch.inf).amax(1)
        return (d_pos - dist.masked_fill(same, torch.inf).amin(1) + margin).relu().mean()

    centers = mined(center_v, ids, center_i, ids) + mined(center_i, ids, center_v, ids)
    samples = mined(feat_v, labels, center_i, ids) + mined(center_v, ids, feat_i, labels)
    return 0.5 * ((1 - sample_weight) * centers + sample_weight * samples)


def center_hinge(raw, purified, labels, modality):
    """Centers through a membership matrix; identities stand in runs of eight rows."""
    sides = 2 * (labels - labels[0]) + modality
    member = torch.nn.functional.one_hot(sides, len(labels) // 4).T.to(raw.dtype)
    member = member / member.sum(1, keepdim=True)
    before, after = ((c[0::2] - c[1::2] + 1e-6).norm(dim=1) for c in (member @ raw, member @ purified))
    return (after - before).relu().mean()


def center_loss(feat, labels, centers):
    """By the matrix of squared distances to all centers: the form most repositories carry."""
    sq = feat.square().sum(1, keepdim=True) + centers.square().sum(1) - 2 * feat @ centers.T
    return (sq * torch.nn.functional.one_hot(labels, len(centers))).clamp(min=0).mean()


def center_loss_gather(feat, labels, centers):
    """The better eager form."""
    return (feat - centers[labels]).square().sum() / (len(feat) * len(centers))


def memory_update(memory, feat, labels, keep=0.25, keep_global=0.1):
    """Class by class, with as many stops of the host as there are classes."""
    for k in labels.unique().tolist():
        own = feat[:, labels == k]
        memory[:-1, k] = normalize(keep * memory[:-1, k] + (1 - keep) * own.mean(1), dim=1)
        rows = own.flatten(0, 1)
        step = rows[(rows @ memory[-1, k]).argmin().item()]
        memory[-1, k] = normalize(keep_global * memory[-1, k] + (1 - keep_global) * step, dim=0)
    return memory


def mce(feat, labels, live, anchors, temperature=0.05, margin=0.3):
    """The objective of three streams of rows, without Python loops."""
    rows, own, (visible, infrared, _) = feat.flatten(0, 1), labels.repeat(3), feat
    dist = torch.cdist(rows, anchors[3][labels])
    same = own[:, None] == labels
    d_pos, d_neg = dist.gather(1, torch.arange(len(labels)).repeat(3)[:, None].to(labels)), dist.masked_fill(same, 1e9)
    loss = (d_pos.squeeze(1) - d_neg.amin(1) + margin).relu().mean() + cross_entropy(
        rows @ live[3].T / temperature, own
    )
    for stream, memory, weight in zip(feat, live, (1, 1, 0.4), strict=False):
        loss = loss + weight * cross_entropy(stream @ memory.T / temperature, labels)
    divergence = 0
    for stream, other, memory in zip(feat, (infrared, visible, infrared), anchors, strict=False):
        target, source = ((x @ memory.T / temperature).log_softmax(1) for x in (other.detach(), stream))
        divergence = divergence + kl_div(source, target, reduction="batchmean", log_target=True) / 3
    return loss + 1.2 * divergence


def symmetric_kl(a, b):
    log_p, log_q = a.log_softmax(1), b.log_softmax(1)
    return kl_div(log_p, log_q.exp(), reduction="batchmean") + kl_div(log_q, log_p.exp(), reduction="batchmean")


def entropy_hinge(raw, purified):
    h_p, h_q = (-(x.softmax(1) * x.log_softmax(1)).sum(1) for x in (raw, purified))
    return ((h_q - h_p).relu().exp() - 1).mean()


def standardized_kl(student, teacher, temperatures=(2, 3, 4, 5, 6), reduction="mean"):
    z_s, z_t = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (student, teacher))
    rows = sum(
        t * t * kl_div((z_s / t).log_softmax(1), (z_t / t).softmax(1), reduction="none").sum(1) for t in temperatures
    )
    return rows.mean() if reduction == "mean" else rows


def decoupled_kl(student, teacher, labels, alpha=1.0, beta=8.0, t=4.0):
    """The own class taken out by a mask and by a large number, as it is published."""
    own = torch.nn.functional.one_hot(labels, student.size(1)).to(student.dtype)
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    pair_p, pair_q = (torch.stack(((own * x).sum(1), ((1 - own) * x).sum(1)), 1) for x in (p, q))
    pair = kl_div(pair_q.log(), pair_p, reduction="batchmean")
    rest_p, rest_q = (teacher / t - 1000 * own).softmax(1), (student / t - 1000 * own).log_softmax(1)
    return t * t * (alpha * pair + beta * kl_div(rest_q, rest_p, reduction="batchmean"))


def dakd(student_v, student_i, teacher_v, teacher_i, prototypes_v, prototypes_i):
    """Both levels of the intended variant, one modality at a time."""
    to_v, to_i = prototypes_v.T / 0.05, prototypes_i.T / 0.05
    sure = (teacher_i @ to_i).softmax(1).amax(1)
    keep = (sure >= sure.quantile(0.5)).float()
    total = 0
    for one_v, one_i in (
        ((student_v, teacher_v), (student_i, teacher_i)),
        ((student_v @ to_v, teacher_v @ to_v), (student_i @ to_i, teacher_i @ to_i)),
    ):
        visible, infrared = standardized_kl(*one_v), standardized_kl(*one_i, reduction="none")
        total = total + 0.45 * (visible + (keep * infrared).mean())
    return total


def gem(x, p=3):
    return x.clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)


def purifier(x, gate_u, gate_x, weight, bias):
    """Instance normalisation, two masks, and five pools, each a map in memory."""
    return _five_pools(x, torch.nn.functional.instance_norm(x, weight=weight, bias=bias), gate_u, gate_x)


def purifier_layer(x, weight, bias, down_u, up_u, down_x, up_x):
    """The same with the convolutions that make the gates."""
    conv, relu = torch.nn.functional.conv2d, torch.relu
    u = torch.nn.functional.instance_norm(x, weight=weight, bias=bias)
    return _five_pools(x, u, conv(relu(conv(u, down_u)), up_u), conv(relu(conv(x, down_x)), up_x))


def _five_pools(x, u, gate_u, gate_x):
    mask_u, mask_x = gate_u.sigmoid(), gate_x.sigmoid()
    u_masked, x_masked = mask_u * u, mask_x * x
    fused = mask_u * x_masked + mask_x * u_masked
    return torch.stack([gem(m) for m in (fused, x, x_masked, u, u_masked)])


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feat):
        ctx.save_for_backward(feat)
        return feat.new_zeros(())

    @staticmethod
    def backward(ctx, grad):
        return torch.empty_like(ctx.saved_tensors[0])


def round_trip(feat, labels):
    """A loss that computes nothing: what PyTorch itself takes for any differentiable function."""
    return _Nothing.apply(feat)


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


def rerank_classic(query_gallery, query_query, gallery_gallery, k1=20, k2=6, lam=0.3):
    """k-reciprocal re-ranking as it is usually written: N x N matrices in NumPy, a loop over rows."""
    dist = np.vstack([np.hstack([query_query, query_gallery]), np.hstack([query_gallery.T, gallery_gallery])])
    original = (dist / dist.max(0)).T
    order = np.argpartition(original, range(1, k1 + 1))
    v, num_query = np.zeros_like(original), len(query_gallery)

    def reciprocal(i, k):
        forward = order[i, : k + 1]
        return forward[(order[forward, : k + 1] == i).any(1)]

    for i in range(len(v)):
        base = members = reciprocal(i, k1)
        for candidate in base:
            own = reciprocal(candidate, round(k1 / 2))
            if len(np.intersect1d(own, base)) > 2 / 3 * len(own):
                members = np.append(members, own)
        members = np.unique(members)
        weight = np.exp(-original[i, members])
        v[i, members] = weight / weight.sum()
    if k2 != 1:
        v = np.stack([v[order[i, :k2]].mean(0) for i in range(len(v))])
    holders = [np.flatnonzero(v[:, c]) for c in range(len(v))]
    jaccard = np.empty((num_query, len(v)), np.float32)
    for i in range(num_query):
        shared = np.zeros(len(v), np.float32)
        for c in np.flatnonzero(v[i]):
            shared[holders[c]] += np.minimum(v[i, c], v[holders[c], c])
        jaccard[i] = 1 - shared / (2 - shared)
    return (jaccard * (1 - lam) + original[:num_query] * lam)[:, num_query:]
