"""From image files to arrays."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from cases._case import Case
from vifast.bench.case import copy
from vifast.data import Augment, make_loader, open_cache, synthetic, sysu
from vifast.data.dali import why_missing
from vifast.data.images import open_image, read_image
from vifast.data.records import make_samples
from vifast.functional import augment

BATCH = 64


def _image_cache(batch, height, width, device="cpu"):
    """A batch of mapped rows against decoding it in torch's number of threads; drawn JPEG files of 320 x 128."""
    folder = tempfile.TemporaryDirectory()
    train = sysu.load(synthetic.write("sysu", f"{folder.name}/sysu", num_ids=12, size=(320, 128))).train
    cache = open_cache(train, size=(height, width), folder=folder.name)
    pool = ThreadPoolExecutor(torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)

    def rows():
        return torch.randint(len(train), (batch,), generator=generator).tolist()

    def pillow(folder=folder):  # the files live as long as what reads them
        return list(pool.map(lambda row: read_image(train.paths[row], (height, width)), rows()))

    floor = copy(torch.from_numpy(cache.read(rows())))
    return {"vifast": lambda: cache.read(rows()), "pillow": pillow, "floor": floor}


def _write_crops(folder, count):
    """JPEG files of random sizes, 100 to 600 high as the crops of SYSU-MM01, some 20 KB each."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        height = int(random.integers(100, 601))
        width = int(random.integers(height // 3, height // 2 + 1))
        coarse = random.normal(128, 60, (height // 8 + 2, width // 8 + 2, 3)).clip(0, 255).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        noisy = (smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        yield folder / f"{number}.jpg"
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=int(random.integers(75, 96)))


def _load_images(count, height, width, device="cpu"):
    """Files to augmented float32 batches with torch's number of threads; the floor is the decoding alone."""
    from PIL import Image

    kept = tempfile.TemporaryDirectory()
    samples = make_samples([(path, 0, 1, 0) for path in _write_crops(Path(kept.name), count)])
    threads, policy = torch.get_num_threads(), Augment.preset("dakd")
    pool = ThreadPoolExecutor(threads)
    make = partial(make_loader, samples, size=(height, width), augment=policy, batch_size=BATCH, num_workers=threads)

    def pillow_resized(row):
        return np.array(open_image(samples.paths[row]).resize((width, height), Image.Resampling.BILINEAR))

    def batches(images, rows):
        params = policy.draw(rows, samples.modality[rows], (height, width), seed=0, epoch=0)
        return augment(torch.from_numpy(np.stack(images)), params)

    def by_threads(kept=kept):  # the files live as long as what reads them
        for rows in BatchSampler(SequentialSampler(range(count)), BATCH, drop_last=False):
            batches(list(pool.map(pillow_resized, rows)), rows)

    processes = DataLoader(
        _Rows(pillow_resized, count), BATCH, num_workers=threads, persistent_workers=True, collate_fn=_stacked
    )

    def by_processes():
        for images, rows in processes:
            batches(images, rows)

    providers = {"vifast": make(), "pillow": make(loader="pillow")}
    if why_missing() is None:
        decode = _decoded_by_dali(samples.paths, threads)
    else:

        def decode():
            return list(pool.map(open_image, samples.paths))

    whole = {name: partial(_exhaust, loader) for name, loader in providers.items()}
    return {"floor": decode, **whole, "pillow_resize": by_threads, "processes": by_processes}


def _exhaust(loader):
    for _ in loader:
        pass


class _Rows(torch.utils.data.Dataset):
    def __init__(self, read, count):
        self.read, self.count = read, count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return self.read(row), row


def _stacked(items):
    images, rows = zip(*items, strict=True)
    return torch.from_numpy(np.stack(images)).numpy(), list(rows)


def _decoded_by_dali(paths, threads):
    from nvidia.dali import Pipeline, fn

    pipeline = Pipeline(BATCH, threads, None)
    with pipeline:
        files, _ = fn.readers.file(files=[str(path) for path in paths])
        pipeline.set_outputs(fn.decoders.image(files))

    def run():
        for _ in range(-(-len(paths) // BATCH)):
            pipeline.run()

    return run


CASES = (
    Case("image_cache", ((64, 288, 144), (64, 384, 144)), _image_cache, gpu=()),
    Case("load_images", ((512, 256, 128), (512, 384, 144)), _load_images, gpu=()),
)
