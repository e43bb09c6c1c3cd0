"""One image file to pixels, by Pillow."""

import os

import numpy as np

from vifast.data.resize import resize

_BROKEN = (OSError, SyntaxError, ValueError, EOFError)  # what Pillow raises for broken files


def open_image(path: str | os.PathLike):
    """Decode an image to its end: a Pillow image in RGB, as stored, whatever orientation the file notes.

    Raises:
        ValueError: the file cannot be decoded; the message has its path.
        FileNotFoundError: there is no such file.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            file.load()
            return file if file.mode == "RGB" else file.convert("RGB")
    except FileNotFoundError:
        raise
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error})") from error


def read_image(path: str | os.PathLike, size: tuple[int, int], resample: str = "bilinear") -> np.ndarray:
    """Decode an image to RGB and :func:`~vifast.data.resize.resize` it to `size` = (height, width): uint8 `[H, W, 3]`.

    Raises:
        ValueError: the file cannot be decoded to its end; the message has its path.
        FileNotFoundError: there is no such file.
    """
    return resize([np.array(open_image(path))], size, resample)[0]
