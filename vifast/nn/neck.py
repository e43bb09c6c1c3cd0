"""Batch-normalisation neck."""

from torch import nn


class BNNeck(nn.BatchNorm1d):
    """Batch normalisation between the feature that the triplet loss sees and the classifier.

    A `torch.nn.BatchNorm1d` (scale trainable from 1) whose shift stays 0: the identity hyperplanes then pass
    through the origin, which is what cosine retrieval assumes.

    Shapes: ``[N, num_features]`` to the same.

    Source: Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-identification";
    there the shift is removed altogether, here it stays as zeros so that published weight files fit.

    >>> neck = BNNeck(8)
    >>> neck.weight.requires_grad, neck.bias.requires_grad
    (True, False)
    """

    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.bias.requires_grad_(False)
