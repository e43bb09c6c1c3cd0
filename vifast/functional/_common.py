import torch
from torch import Tensor
from torch.nn.functional import normalize

METRICS = ("euclidean", "sqeuclidean", "cosine")
REDUCTIONS = ("mean", "sum", "none")
PRECISIONS = ("exact", "fast")


def unit_rows(feat: Tensor) -> Tensor:
    return normalize(feat.to(torch.promote_types(feat.dtype, torch.float32)), eps=1e-12)


def reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" and loss.size(0) > 0 else loss.sum()
