"""Images to batches on the CPU: Pillow decoding in torch's DataLoader."""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from vifast.data.augmentation import Augment
from vifast.data.records import Samples
from vifast.functional import AugmentParams, augment

if TYPE_CHECKING:
    from vifast.data.cache import ImageCache

_BROKEN = (OSError, SyntaxError, ValueError, EOFError)  # what Pillow raises for broken files


def open_image(path: str | os.PathLike):
    """Decode an image to its end: a Pillow image in RGB.

    Raises:
        ValueError: the file cannot be decoded; the message has its path.
        FileNotFoundError: there is no such file.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except FileNotFoundError:
        raise
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error})") from error


def read_image(path: str | os.PathLike, size: tuple[int, int], resample: str = "bilinear") -> np.ndarray:
    """Decode an image to RGB and resize it (`"bilinear"`, `"lanczos"`) to `size` = (height, width): uint8 `[H, W, 3]`.

    Raises:
        ValueError: the file cannot be decoded to its end; the message has its path.
        FileNotFoundError: there is no such file.
    """
    from PIL import Image

    image = open_image(path)
    return np.array(image if image.size == size[::-1] else image.resize(size[::-1], Image.Resampling[resample.upper()]))


class ImageDataset(Dataset):
    """Samples as dicts of image, label, camera, modality and index.

    An item is asked for by `(epoch, index)`. Its random numbers are a function of `(seed, epoch, index)`: the same for
    any order of items, batch and number of workers.
    """

    def __init__(self, samples: Samples, *, size: tuple[int, int], augment: Augment | None, cache, seed: int):
        self.samples, self.size, self.augment, self.cache, self.seed = samples, size, augment, cache, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | int]:
        epoch, index = key
        image = read_image(self.samples.paths[index], self.size) if self.cache is None else self.cache.read([index])[0]
        modality = int(self.samples.modality[index])
        if self.augment is None:
            params = AugmentParams.identity(1)
        else:
            params = self.augment.draw([index], [modality], self.size, seed=self.seed, epoch=epoch)
        tensor = augment(torch.from_numpy(image)[None], params)[0]
        return {
            "image": tensor,
            "label": int(self.samples.labels[index]),
            "camera": int(self.samples.cams[index]),
            "modality": modality,
            "index": index,
        }


class _EpochKeys:
    """The batches of a sampler with its epoch beside every index, so that no worker needs to be told the epoch."""

    def __init__(self, batch_sampler: Iterable[list[int]]):
        self.batch_sampler = batch_sampler
        self.epoch = 0
        # Accelerate shards batches over processes only where it finds both.
        self.batch_size = getattr(batch_sampler, "batch_size", None)
        self.drop_last = getattr(batch_sampler, "drop_last", False)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.batch_sampler, "set_epoch"):
            self.batch_sampler.set_epoch(epoch)

    def start_at(self, epoch: int, step: int) -> None:
        """As the sampler's: the next iteration begins with batch `step` of `epoch`."""
        self.epoch = epoch
        self.batch_sampler.start_at(epoch, step)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batch_sampler:
            yield [(self.epoch, index) for index in batch]


def make_loader(
    samples: Samples,
    *,
    size: tuple[int, int],
    augment: Augment | None = None,
    batch_sampler: Iterable[list[int]] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    cache: "ImageCache | None" = None,
    seed: int = 0,
) -> DataLoader:
    """A DataLoader over `samples`; the same seed gives the same batches for any number of workers.

    Call `loader.batch_sampler.set_epoch(epoch)` before every epoch of training: it reaches the sampler and the
    augmentation (Accelerate's prepared loaders do so by themselves).

    Args:
        samples: what to load.
        size: (height, width) of the images.
        augment: training transform; None only normalises.
        batch_sampler: lists of indices, e.g. `CrossModalSampler`; by default all samples in order, `batch_size` at
            once.
        batch_size: images of a batch without a `batch_sampler`.
        num_workers: processes that decode; 0 decodes in the caller.
        cache: the images of `samples` at `size`, see `vifast.data.open_cache`: nothing is decoded.
        seed: key of the augmentation's random numbers.

    Returns:
        Loader of dicts: `image [B, 3, H, W]` float32, `label`, `camera`, `modality`, `index` `[B]` int64.

    Raises:
        ValueError: an argument is out of range; or, when an image is read, it cannot be decoded (its path is named).
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    if not len(samples):
        raise ValueError("samples: expected at least one image, got none")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (height, width) in pixels, got {size!r}")
    if cache is not None and (len(cache), *cache.size) != (len(samples), *size):
        found = f"{len(cache)} at {cache.size}"
        raise ValueError(f"cache: expected {len(samples)} images at {tuple(size)} as in samples, got {found}")
    if batch_sampler is None:
        batch_sampler = BatchSampler(SequentialSampler(range(len(samples))), batch_size, drop_last=False)
    dataset = ImageDataset(samples, size=tuple(size), augment=augment, cache=cache, seed=seed)
    return DataLoader(
        dataset,
        batch_sampler=_EpochKeys(batch_sampler),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
