"""From image files to arrays."""

import tempfile
from concurrent.futures import ThreadPoolExecutor

import torch

from cases._case import Case, copy
from vifast.data import open_cache, synthetic, sysu
from vifast.data.cache import read_image


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


CASES = (Case("image_cache", ((64, 288, 144), (64, 384, 144)), _image_cache, gpu=False),)
