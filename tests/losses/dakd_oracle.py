"""The objective of spec dakd 5, written step by step, and batches to compute it of."""

import torch
from torch.nn.functional import normalize

TEMPERATURES = (2, 3, 4, 5, 6)


def batch(n=8, n_i=None, d=48, k=11, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rows(m):
        return torch.randn(m, d, generator=generator, dtype=torch.float64).to(dtype)

    n_i = n if n_i is None else n_i
    students = [rows(n).requires_grad_(), rows(n_i).requires_grad_()]
    return [*students, *(normalize(rows(m)) for m in (n, n_i, k, k))]


def divergences(student, teacher):
    """D_T of every row and temperature, [N, 5]."""
    z_s, z_t = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (student, teacher))
    columns = []
    for t in TEMPERATURES:
        log_p, log_q = (z_t / t).log_softmax(1), (z_s / t).log_softmax(1)
        columns.append(t**2 * (log_p.exp() * (log_p - log_q)).sum(1))
    return torch.stack(columns, 1)


def levels(batch, tau=0.05):
    """Both levels as (student_v, student_i, teacher_v, teacher_i) logits."""
    *features, to_v, to_i = batch
    return {
        "instance": features,
        "class": [x @ (to_v, to_i)[m % 2].T / tau for m, x in enumerate(features)],
    }


def confidence(logits):
    return logits.softmax(1).amax(1)


def intended(batch):
    rows = levels(batch)
    sure = confidence(rows["class"][3])
    keep = (sure >= sure.quantile(0.5)).double()
    parts = {}
    for level, (s_v, s_i, t_v, t_i) in rows.items():
        parts[level] = 0.9 * (divergences(s_v, t_v).sum(1).mean() + (keep * divergences(s_i, t_i).sum(1)).mean())
    return parts | {"loss": 0.5 * parts["instance"] + 0.5 * parts["class"], "kept": keep.mean()}


def release(batch):
    """The public code's steps: its "strong" rows are visible, its "weak" rows infrared, its mask a scalar."""
    total, shares = 0, []
    for s_v, s_i, t_v, t_i in levels(batch).values():
        sure = confidence(t_i)
        share = (sure <= sure.quantile(0.5)).double().mean()
        d_v, d_i = divergences(s_v, t_v).mean(0), divergences(s_i, t_i).mean(0)
        for t, temperature in enumerate(TEMPERATURES):
            strong = d_v if temperature in (3, 4, 5) else d_i
            total = total + 0.5 * 0.9 * (strong[t] + share * d_i[t])
        shares.append(share)
    return {"loss": total, "kept": torch.stack(shares).mean()}


def masked_class_level(inputs, keep_v, keep_i, norm_v=None, norm_i=None):
    s_v, s_i, t_v, t_i = levels(inputs)["class"]
    d_v, d_i = divergences(s_v, t_v).sum(1), divergences(s_i, t_i).sum(1)
    return 0.9 * ((keep_v * d_v).sum() / (norm_v or len(d_v)) + (keep_i * d_i).sum() / (norm_i or len(d_i)))


def labelled(n=8, n_i=None, **options):
    """A batch of 11 classes, and the labels of its rows."""
    inputs = batch(n, n_i, **options)
    generator = torch.Generator().manual_seed(5)
    labels = {
        f"labels_{m}": torch.randint(0, 4, (len(x),), generator=generator) for m, x in zip("vi", inputs, strict=False)
    }
    return inputs, labels
