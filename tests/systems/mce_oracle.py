"""MCE's objective in plain Python: one number at a time, of nested lists, in float64."""

import math

STREAMS = ("visible", "infrared", "auxiliary")
OTHER = {"visible": "infrared", "infrared": "visible", "auxiliary": "infrared"}  # whose rows teach the stream's


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def log_softmax(logits):
    top = max(logits)
    return [x - top - math.log(sum(math.exp(y - top) for y in logits)) for x in logits]


def cross_entropy(rows, labels, memory, temperature):
    terms = [
        -log_softmax([dot(row, m) / temperature for m in memory])[label]
        for row, label in zip(rows, labels, strict=True)
    ]
    return sum(terms) / len(terms)


def center(feat, labels, anchors, margin):
    terms = []
    for stream in STREAMS:
        for row, label in zip(feat[stream], labels, strict=True):
            others = [distance(row, anchors[other]) for other in labels if other != label]
            terms.append(max(0.0, distance(row, anchors[label]) - min(others) + margin))
    return sum(terms) / len(terms)


def agreement(feat, taught_by, anchors, temperature):
    terms = []
    for stream in STREAMS:
        for own, other in zip(feat[stream], taught_by[OTHER[stream]], strict=True):
            log_o = log_softmax([dot(own, m) / temperature for m in anchors[stream]])
            log_q = log_softmax([dot(other, m) / temperature for m in anchors[stream]])
            terms.append(sum(math.exp(q) * (q - o) for q, o in zip(log_q, log_o, strict=True)))
    return sum(terms) / len(terms)


def objective(feat, labels, live, anchors, *, temperature=0.05, margin=0.3, taught_by=None):
    """All parts and their total, of tensors [3, N, D], [N] and twice [4, K, D].

    ``taught_by`` [3, N, D] are the rows that the divergence is to, by default ``feat``: they get no gradient.
    """
    names = (*STREAMS, "global")
    taught_by = dict(zip(STREAMS, (feat if taught_by is None else taught_by).tolist(), strict=True))
    feat = dict(zip(STREAMS, feat.tolist(), strict=True))
    live, anchors = (dict(zip(names, sets.tolist(), strict=True)) for sets in (live, anchors))
    labels = labels.tolist()
    every = [row for stream in STREAMS for row in feat[stream]]
    parts = {
        "center": center(feat, labels, anchors["global"], margin),
        "global": cross_entropy(every, labels * 3, live["global"], temperature),
        **{stream: cross_entropy(feat[stream], labels, live[stream], temperature) for stream in STREAMS},
        "kl": agreement(feat, taught_by, anchors, temperature),
    }
    loss = parts["center"] + parts["global"] + parts["visible"] + parts["infrared"]
    return {"loss": loss + 0.4 * parts["auxiliary"] + 1.2 * parts["kl"], **parts}
