"""Which rows a teacher is sure about, by a threshold of every class that follows the batches."""

import torch
from torch import Tensor, nn

from vifast import _checks


class ClassThreshold(nn.Module):
    r"""Self-adaptive threshold of FreeMatch: a row whose largest probability is that of class c is kept from

    .. math:: \theta_c = \theta \cdot \tilde p_c / \max \tilde p

    on. theta and p~ are averages over the batches, of the mean confidence and of the mean probabilities of the classes:
    momentum times the value before, and the rest of it this batch's; they start at those of the first. A class that the
    teacher seldom gives probability to has a low threshold.

    Args:
        num_classes: K.
        momentum: 0..1.
        high: rows from the threshold on are kept, otherwise those up to it.

    Forward: logits [N, K]; counted [N] bool, the rows that the averages are made of. Returns [N] bool. The averages
    move in training mode only, and stay where this batch's is not finite, as that of no rows.

    Source: Wang et al. 2023 (FreeMatch), spec dakd 5.4.

    >>> sure = ClassThreshold(2, momentum=0.9)
    >>> logits = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]).log()
    >>> sure(logits, torch.ones(3, dtype=torch.bool)).tolist()  # theta 0.8; 0.8 and 0.4 by class
    [True, True, True]
    """

    def __init__(self, num_classes: int, *, momentum: float = 0.999, high: bool = True):
        super().__init__()
        _checks.count("num_classes", num_classes)
        _checks.within("momentum", momentum, 0, 1)
        self.momentum, self.high = float(momentum), high
        self.register_buffer("threshold", torch.full((), torch.nan))
        self.register_buffer("share", torch.full((num_classes,), torch.nan))

    @torch.no_grad()
    def forward(self, logits: Tensor, counted: Tensor) -> Tensor:
        probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
        confidence, best = probability.max(1)
        rows = counted.sum()
        threshold = self._moved(self.threshold, torch.where(counted, confidence, 0.0).sum() / rows)
        share = self._moved(self.share, torch.where(counted.unsqueeze(1), probability, 0.0).sum(0) / rows)
        bar = threshold * (share / share.amax())[best]
        return confidence >= bar if self.high else confidence <= bar

    def _moved(self, average: Tensor, now: Tensor) -> Tensor:
        now = now.to(average.dtype)
        momentum = self.momentum if self.training else 1.0
        after = torch.where(average.isnan(), now, torch.lerp(now, average, momentum))
        after = torch.where(now.isfinite(), after, average)
        if self.training:
            average.copy_(after)
        return after
