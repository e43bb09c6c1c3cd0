from torch import Tensor

from vifast import _checks
from vifast.functional._common import PRECISIONS
from vifast.kernels.center_triplet import center_triplet


def center_triplet_loss(
    feat_v: Tensor,
    feat_i: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.1,
    sample_weight: float = 0.5,
    symmetric: bool = False,
    precision: str = "exact",
) -> Tensor:
    r"""Cross-modal triplets of centers and samples: (1 - s) L_cc + s L_cs, s = ``sample_weight``.

    With c the center of an identity in a modality and T(Q, R) the mean over anchors in Q of
    max(0, farthest positive - nearest negative + margin), both mined in R alone,

        L_cc = (T(c_v, c_i) + T(c_i, c_v)) / 2        L_cs = (T(f_v, c_i) + T(c_v, f_i)) / 2

    A center counts once per identity, whatever its number of samples.

    Args:
        feat_v: [N, D] visible features.
        feat_i: [N, D] infrared features, same dtype and device.
        labels: [N] integers, the identities of both.
        margin: at least 0.
        sample_weight: 0 to 1.
        symmetric: anchor the second half of L_cs on infrared samples, T(f_i, c_v), in place of visible centers.
        precision: see :func:`pairwise_distance`.

    Returns:
        A scalar. An anchor without negatives counts as 0; no rows: 0.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: centers (on a GPU beside every row), a copy of the inputs, and the gradient, never N x N.

    Source: spec ckda 4, R11.

    Example:
        >>> import torch
        >>> feat_v, feat_i = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [4.0]])
        >>> round(center_triplet_loss(feat_v, feat_i, torch.tensor([0, 1])).item(), 4)
        0.9875
    """
    _checks.rows("feat_v", feat_v)
    _checks.rows("feat_i", feat_i)
    _checks.same_rows("feat_i", feat_i, "feat_v", feat_v)
    _checks.same_columns("feat_i", feat_i, "feat_v", feat_v)
    labels = _checks.labels("labels", labels, "feat_v", feat_v)
    _checks.non_negative("margin", margin)
    _checks.within("sample_weight", sample_weight, 0, 1)
    _checks.one_of("precision", precision, PRECISIONS)
    loss, *_ = center_triplet(feat_v, feat_i, labels, float(margin), float(sample_weight), bool(symmetric), precision)
    return loss
