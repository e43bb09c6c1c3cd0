from torch import Tensor

from vifast import _checks
from vifast.kernels.center_hinge import center_hinge as _center_hinge


def center_hinge(raw: Tensor, purified: Tensor, labels: Tensor, modality: Tensor, *, margin: float = 0.0) -> Tensor:
    r"""Mean over identities of max(0, d(purified) - d(raw) + margin), d the distance of its two modality centers.

    d is || visible center - infrared center + 1e-6 ||, with 1e-6 added to every component: purification must not move
    the modalities of an identity apart.

    Args:
        raw: [N, D] features before purification.
        purified: [N, D] features after it, same dtype and device.
        labels: [N] integers of any value. An identity counts once, whatever its number of rows, and only if it has
            rows of both modalities.
        modality: [N] integers, 0 visible and 1 infrared; a row with another value is ignored.
        margin: at least 0.

    Returns:
        A scalar; 0 if no identity has both modalities.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Memory: two centers of every identity, and the gradients. Source: spec idkl 3, L_m.

    Example:
        >>> import torch
        >>> raw, purified = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
        >>> center_hinge(raw, purified, torch.tensor([7, 7]), torch.tensor([0, 1])).item()
        2.0
    """
    _checks.rows("raw", raw)
    _checks.rows("purified", purified)
    _checks.same_rows("purified", purified, "raw", raw)
    _checks.same_columns("purified", purified, "raw", raw)
    labels = _checks.labels("labels", labels, "raw", raw)
    modality = _checks.labels("modality", modality, "raw", raw)
    _checks.non_negative("margin", margin)
    return _center_hinge(raw, purified, labels, modality, float(margin))
