"""What the sums of DAKD's objective hide."""

from __future__ import annotations

import torch
from torch import Tensor

from vifast.functional import softmax_confidence, standardized_kl
from vifast.losses import DAKDLoss


@torch.no_grad()
def details(
    objective: DAKDLoss,
    student_v: Tensor,
    student_i: Tensor,
    teacher_v: Tensor,
    teacher_i: Tensor,
    prototypes_v: Tensor,
    prototypes_i: Tensor,
) -> dict[str, Tensor]:
    """Mean divergences by level, modality and temperature, and how sure the teacher is of every image.

    Returns:
        Scalars ``instance_v_T2`` and so on, of all rows without weights and masks, class profiles to the prototypes of
        the rows' own modality; and ``confidence_v``, ``confidence_r`` [N], of these profiles.
    """
    found = {}
    sides = (("v", student_v, teacher_v, prototypes_v), ("r", student_i, teacher_i, prototypes_i))
    options = {"standardize": objective.standardize, "ddof": objective.ddof, "eps": objective.eps}
    for modality, student, teacher, prototypes in sides:
        profiles = [rows @ prototypes.T / objective.class_temp for rows in (student, teacher)]
        found[f"confidence_{modality}"] = softmax_confidence(profiles[1])
        for level, pair in (("instance", (student, teacher)), ("class", profiles)):
            for temperature in objective.temperatures:
                value = standardized_kl(*pair, (temperature,), **options)
                found[f"{level}_{modality}_T{temperature:g}"] = value
    return found
