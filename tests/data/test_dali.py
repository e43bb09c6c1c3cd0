"""DALI on the CPU gives Pillow's bits in the same order. Skipped where it is not installed."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vifast.data import Augment, CrossModalSampler, make_loader, regdb, sysu
from vifast.data.dali import _resized, why_missing
from vifast.data.images import read_image
from vifast.data.records import make_samples

missing = why_missing()
needs_dali = pytest.mark.skipif(missing is not None, reason=str(missing))
SIZE = (32, 16)


@pytest.fixture
def train(sysu_tree):
    return sysu.load(sysu_tree).train


def pair(samples, **options):
    """What both loaders give for the same arguments."""
    options = {"size": SIZE, "batch_size": 7, "num_workers": 2, **options}
    return [list(make_loader(samples, loader=name, **options)) for name in ("dali", "pillow")]


def equal(first, second):
    return len(first) == len(second) > 0 and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a.keys() | b.keys()
    )


@needs_dali
@pytest.mark.parametrize("resample", ["bilinear", "lanczos"])
def test_the_same_batches(train, resample):
    sampler = CrossModalSampler(train.labels, train.modality, num_ids=3, num_instances=2, seed=7)
    options = {"augment": Augment.preset("dakd"), "batch_sampler": sampler, "resample": resample}
    assert equal(*pair(train, **options))
    sampler.set_epoch(1)
    assert equal(*pair(train, num_workers=1, **options))


@needs_dali
def test_bitmaps_and_more_batches_than_are_ahead(regdb_tree):
    assert equal(*pair(regdb.load(regdb_tree).train, batch_size=3))


@needs_dali
def test_every_kind_of_file(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (61, 37, 3), dtype=np.uint8))
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (61, 37), dtype=np.uint8)))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "420.jpg": (image, {"subsampling": 2}),
        "444.jpg": (image, {"subsampling": 0}),
        "progressive.jpg": (image, {"progressive": True}),
        "grey.jpg": (image.convert("L"), {}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "turned.jpg": (image, {"exif": turned}),
        "rgb.png": (image, {}),
        "grey.png": (image.convert("L"), {}),
        "palette.png": (image.convert("P"), {}),
        "alpha.png": (alpha, {}),
        "one bit.png": (image.convert("1"), {}),
        "rgb.bmp": (image, {}),
        "grey.bmp": (image.convert("L"), {}),
        "palette.bmp": (image.convert("P"), {}),
    }
    for name, (picture, options) in files.items():
        picture.save(tmp_path / name, **options)
    samples = make_samples([(tmp_path / name, 0, 1, 0) for name in files])
    by_dali, by_pillow = (torch.cat([batch["image"] for batch in side]) for side in pair(samples))
    different = (by_dali != by_pillow).flatten(1).any(1)
    assert [name for name, wrong in zip(files, different, strict=True) if wrong] == []


@needs_dali
def test_iterations_end_early_restart_and_overlap(train):
    dali = make_loader(train, size=SIZE, batch_size=7, loader="dali")
    expected = list(make_loader(train, size=SIZE, batch_size=7, loader="pillow"))
    next(iter(dali))
    assert equal(list(dali), expected)
    assert equal(list(dali), expected)
    assert all(equal([a, b], [c, c]) for a, b, c in zip(dali, dali, expected, strict=True))


@needs_dali
@pytest.mark.parametrize("row", [0, 9, 40, -1])
@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"not an image", None])
def test_a_damaged_file_is_named_or_replaced(sysu_copy, row, damage, caplog):
    train = sysu.load(sysu_copy).train
    bad = train.paths[row]
    if damage is None:
        bad.unlink()
    else:
        bad.write_bytes(damage(bad.read_bytes()))
    loader = make_loader(train, size=SIZE, batch_size=7, loader="dali")
    for _ in range(2):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(str(bad))):
            list(loader)
    assert equal(*pair(train, on_damage="skip"))
    assert "DALI failed" not in caplog.text  # it was told which batch


@needs_dali
def test_a_format_that_dali_does_not_know_is_read_by_pillow(tmp_path, caplog):
    Image.new("RGB", (6, 9), (1, 200, 3)).save(tmp_path / "a.ppm")
    Image.new("P", (6, 9)).save(tmp_path / "b.gif")
    odd = make_samples([(tmp_path / "a.ppm", 0, 1, 0), (tmp_path / "b.gif", 0, 1, 0)])
    assert equal(*pair(odd, batch_size=1))
    assert "a batch is decoded by Pillow, for DALI failed: " in caplog.text


@needs_dali
@pytest.mark.parametrize(("resample", "most"), [("bilinear", 5), ("lanczos", 8)])
def test_filters_of_dali_are_those_of_resize_but_for_rounding(train, resample, most):
    """Those of `DaliSource` on a GPU, here on the CPU."""
    from nvidia.dali import Pipeline, fn

    pipeline = Pipeline(len(train), 1, None)
    with pipeline:
        files, _ = fn.readers.file(files=[str(path) for path in train.paths])
        pipeline.set_outputs(_resized(fn.decoders.image(files), SIZE, resample))
    (out,) = pipeline.run()
    wanted = np.stack([read_image(path, SIZE, resample) for path in train.paths])
    off = np.abs(np.asarray(out.as_tensor()).astype(int) - wanted)
    assert off.max() <= most
    assert off.mean() < 0.3


@needs_dali
def test_an_error_of_the_sampler_is_its_own(train):
    class Sampler:
        def __len__(self):
            return 2

        def __iter__(self):
            yield [0, 1]
            raise RuntimeError("from the sampler")

    loader = make_loader(train, size=SIZE, batch_sampler=Sampler(), loader="dali")
    for _ in range(2):
        batches = iter(loader)
        assert next(batches)["index"].tolist() == [0, 1]
        with pytest.raises(RuntimeError, match="from the sampler"):
            next(batches)


@needs_dali
def test_a_process_ends_while_batches_are_on_their_way(sysu_tree):
    code = f"""
from vifast.data import make_loader, sysu
batches = iter(make_loader(sysu.load({str(sysu_tree)!r}).train, size=(32, 16), batch_size=4, loader="dali"))
print(len(next(batches)["index"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=sysu_tree, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


def test_without_dali(train, monkeypatch):
    for name in ("nvidia", "nvidia.dali", "nvidia.dali.fn"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert make_loader(train, size=SIZE).loader == "pillow"
    with pytest.raises(ImportError, match=r"loader: DALI cannot be imported .*; pip install \"vifast\[dali\]\""):
        make_loader(train, size=SIZE, loader="dali")


@needs_dali
def test_with_dali_it_is_chosen(train):
    assert make_loader(train, size=SIZE).loader == "dali"
