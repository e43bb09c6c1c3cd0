from torch import Tensor

from vifast import _checks
from vifast.kernels.class_centers import class_centers as _class_centers


def class_centers(feat: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    r"""Mean feature of every class, and how many rows it has.

    Sums run over the rows of a class in rising order: the same bits for any number of threads and on every run. The
    centers are differentiable.

    Args:
        feat: [N, D].
        labels: [N] integers. A row whose label is not in 0 .. num_classes - 1 is ignored and gets no gradient; nothing
            is read back from the device to complain.
        num_classes: K, at least 0.

    Returns:
        ``(centers [K, D], counts [K])``; an empty class is a row of zeros with count 0. Centers are float32 (float64
        for float64), counts int64.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: the result and O(N + K) indices. Source: spec ckda 5.1.

    Example:
        >>> import torch
        >>> centers, counts = class_centers(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 2, 2]), 3)
        >>> centers.tolist(), counts.tolist()
        ([[1.0], [0.0], [3.0]], [1, 0, 2])
    """
    _checks.rows("feat", feat)
    labels = _checks.labels("labels", labels, "feat", feat)
    _checks.count("num_classes", num_classes, 0)
    return _class_centers(feat, labels, num_classes)
