"""A picture of a dataset: one row an identity, one column group a camera."""

import os
from pathlib import Path

import numpy as np

from vifast.data.loader import read_image
from vifast.data.records import Samples


def write(
    samples: Samples,
    path: str | os.PathLike,
    *,
    num_ids: int = 8,
    per_camera: int = 2,
    size: tuple[int, int] = (128, 64),
) -> Path:
    """Write a PNG with the first `per_camera` images of each camera for the first `num_ids` identities.

    A camera that lacks images of an identity leaves grey tiles. The file appears whole or not at all.

    Raises:
        ValueError: an argument is out of range, `samples` is empty, or an image cannot be decoded.
    """
    from PIL import Image

    for name, value in (
        ("num_ids", num_ids),
        ("per_camera", per_camera),
        ("samples", len(samples)),
        ("size", min(size)),
    ):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    identities, cams = np.unique(samples.labels)[:num_ids], np.unique(samples.cams)
    height, width = size
    sheet = np.full((len(identities) * height, len(cams) * per_camera * width, 3), 127, np.uint8)
    for row, identity in enumerate(identities):
        for column, camera in enumerate(cams):
            found = np.flatnonzero((samples.labels == identity) & (samples.cams == camera))[:per_camera]
            for n, index in enumerate(found):
                left = (column * per_camera + n) * width
                tile = read_image(samples.paths[index], size)
                sheet[row * height : (row + 1) * height, left : left + width] = tile
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(sheet).save(draft, format="PNG")
    os.replace(draft, path)
    return path
