"""What a stage knows of its identities: a prototype of each in each modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vifast.functional import class_centers
from vifast.systems.base import Batch, TrainingImages

NAMES = ("prototypes_v", "prototypes_i")
VISIBLE, INFRARED = 0, 1


def of_images(images: TrainingImages, embed: Callable[[Batch], Tensor], *, regdb_infrared: str) -> dict[str, Tensor]:
    """Means [K, D] of every identity's features in either modality, under `NAMES`; they are not of unit length.

    K counts the identities of all images, also of those that were not trained on (R5). Source: spec ckda 5.1, R4.
    """
    count = int(images.labels.max()) + 1
    feat = images.features(embed)
    sides = [(feat, VISIBLE), (feat, INFRARED)]
    if regdb_infrared == "visible" and images.dataset == "RegDB":
        # The released code shows the network visible images and calls them infrared.
        called = images.features(lambda batch: embed({**batch, "modality": torch.ones_like(batch["modality"])}))
        sides[1] = called, VISIBLE
    return {
        name: class_centers(rows, torch.where(images.modality == modality, images.labels, -1), count)[0]
        for name, (rows, modality) in zip(NAMES, sides, strict=True)
    }


def checked(found: Mapping[str, Tensor], width: int, place: str) -> Mapping[str, Tensor]:
    """The prototypes [K, width] that a stage left; a ValueError that begins with the ``place`` if they are none."""
    shapes = {name: list(rows.shape) for name, rows in found.items()}
    if shapes.keys() != set(NAMES) or any(len(shape) != 2 or shape[1] != width for shape in shapes.values()):
        wanted = f"{' and '.join(NAMES)} [K, {width}]"
        raise ValueError(f"{place}: expected {wanted}, got {shapes}")
    return found
