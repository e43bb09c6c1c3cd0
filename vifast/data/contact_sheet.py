"""A picture of a dataset: one row an identity, one column group a camera, visible ones first."""

import io
import os
from pathlib import Path

import numpy as np
import torch

from vifast._files import write_bytes
from vifast.data.augmentation import Augment
from vifast.data.images import read_image
from vifast.data.records import INFRARED, Samples
from vifast.functional import AugmentParams, augment

MARGIN, HEADER = 36, 16  # pixels left of the rows, for identities, and above the columns, for cameras
_GREY, _INK = 127, (0, 0, 0)


def write(
    samples: Samples,
    path: str | os.PathLike,
    *,
    num_ids: int = 8,
    per_camera: int = 2,
    size: tuple[int, int] = (128, 64),
    names: np.ndarray | None = None,
    policy: Augment | None = None,
) -> Path:
    """Write a PNG with the first `per_camera` images of each camera for the first `num_ids` identities.

    The cameras are those that photographed the shown identities; a camera that is two sensors has a column group for
    each. One that lacks images of an identity leaves grey tiles. The file appears whole or not at all.

    Args:
        samples: what to show.
        path: the file.
        num_ids: rows.
        per_camera: images of a camera; of different tracklets where `samples` has enough.
        size: height and width of a tile.
        names: [num_labels] identities to write beside the rows; None writes the labels themselves.
        policy: show the images as this augments them; without partners, so that CutMix and MixUp do nothing.

    Raises:
        ValueError: an argument is out of range, `samples` is empty, or an image cannot be decoded.
    """
    from PIL import Image, ImageDraw

    for name, value in (
        ("num_ids", num_ids),
        ("per_camera", per_camera),
        ("samples", len(samples)),
        ("size", min(size)),
    ):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    identities = np.unique(samples.labels)[:num_ids]
    shown = samples.select(np.isin(samples.labels, identities))
    sensors = np.unique(np.stack([shown.modality, shown.cams], axis=1), axis=0)
    height, width = size
    group = per_camera * width
    sheet = Image.new("RGB", (MARGIN + len(sensors) * group, HEADER + len(identities) * height), (_GREY, _GREY, _GREY))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((0, 0, sheet.width, HEADER - 1), fill="white")
    pen.rectangle((0, 0, MARGIN - 1, sheet.height), fill="white")
    for column, (modality, camera) in enumerate(sensors):
        left = MARGIN + column * group
        pen.text((left + 2, 2), f"cam {camera}{' IR' if modality == INFRARED else ''}", fill=_INK)
        for row, identity in enumerate(identities):
            here = (shown.labels == identity) & (shown.cams == camera) & (shown.modality == modality)
            for n, index in enumerate(_first(shown, np.flatnonzero(here), per_camera)):
                tile = read_image(shown.paths[index], size)
                if policy is not None:
                    params = policy.draw([index], [modality], size, seed=0, epoch=0, partner=[0])
                    tile = augmented(torch.from_numpy(tile)[None], params)[0].numpy()
                sheet.paste(Image.fromarray(tile), (left + n * width, HEADER + row * height))
    for row, identity in enumerate(identities):
        pen.text((2, HEADER + row * height + 2), str(identity if names is None else names[identity]), fill=_INK)
    data = io.BytesIO()
    sheet.save(data, format="PNG")
    write_bytes(path, data.getvalue())
    return Path(path)


def augmented(images: torch.Tensor, params: AugmentParams) -> torch.Tensor:
    """Images as the network sees them, in 0..255; erased boxes in what their fill stands for.

    Args:
        images: [B, H, W, 3] uint8.
        params: as of `Augment.draw`.

    Returns:
        [B, H, W, 3] uint8.
    """
    shown = augment(images, params).permute(0, 2, 3, 1)
    pixels = (shown * torch.tensor(params.std) + torch.tensor(params.mean)) * 255
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _first(samples: Samples, rows: np.ndarray, count: int) -> np.ndarray:
    """The first rows, one of each tracklet before a second of any."""
    if samples.tracklets is None:
        return rows[:count]
    starts = rows[np.unique(samples.tracklets[rows], return_index=True)[1]]
    return np.sort(np.concatenate([starts, np.setdiff1d(rows, starts)])[:count])
