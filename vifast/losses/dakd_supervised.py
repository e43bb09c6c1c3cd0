"""Terms with labels that may be added to DAKD's objective."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vifast import _checks, functional

_SMOOTHING, _MARGIN, _NCE_TEMPERATURE = 0.1, 0.3, 0.05


def supervised_terms(names, student_v, student_i, labels, logits_v, logits_i) -> dict[str, Tensor]:
    """Those of ``"id"``, ``"tri"`` and ``"nce"`` that are among ``names``, unweighted."""
    terms = {}
    if "id" in names:
        heads = {"logits_v": (logits_v, student_v, labels[0]), "logits_i": (logits_i, student_i, labels[1])}
        terms["id"] = 0.5 * sum(_cross_entropy(name, *head) for name, head in heads.items())
    if labels is not None:
        options = {"reference": student_i, "reference_labels": labels[1]}
    if "tri" in names:
        terms["tri"] = functional.triplet_loss(student_v, labels[0], margin=_MARGIN, **options)
    if "nce" in names:
        options |= {"metric": "cosine", "temperature": _NCE_TEMPERATURE}
        terms["nce"] = functional.neighbor_loss(student_v, labels[0], **options)
    return terms


def _cross_entropy(name: str, logits: Tensor | None, student: Tensor, labels: Tensor) -> Tensor:
    """Mean of a modality in float32; 0 of no rows."""
    if logits is None:
        raise ValueError(f"{name}: expected a tensor for lam_id, got None")
    _checks.rows(name, logits)
    _checks.same_rows(name, logits, "student" + name[-2:], student)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, labels, reduction="sum", label_smoothing=_SMOOTHING) / max(len(logits), 1)
