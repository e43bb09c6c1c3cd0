import re

import numpy as np
import pytest
import torch
from PIL import Image

from vifast.data import Augment, CrossModalSampler, make_loader, open_cache, sysu
from vifast.data.augmentation import Exchange
from vifast.data.loader import read_image

SIZE = (32, 16)
NOISY = Augment(pad=2, exchange_visible=Exchange(channel=0.5))


@pytest.fixture
def train(sysu_tree):
    return sysu.load(sysu_tree).train


def batches(train, *, epoch=0, seed=0, **options):
    sampler = CrossModalSampler(train.labels, train.modality, num_ids=3, num_instances=2, seed=7)
    loader = make_loader(train, size=SIZE, augment=NOISY, batch_sampler=sampler, seed=seed, **options)
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def equal(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )


def test_a_batch(train):
    batch = batches(train)[0]
    assert batch["image"].shape == (12, 3, *SIZE)
    assert batch["image"].dtype == torch.float32
    for name, column in (("label", train.labels), ("camera", train.cams), ("modality", train.modality)):
        assert batch[name].dtype == torch.int64
        assert batch[name].tolist() == column[batch["index"]].tolist()
    assert batch["modality"].tolist() == [1, 0] * 6


def test_the_same_for_any_number_of_workers_with_and_without_cache(train):
    expected = batches(train, epoch=3)
    assert equal(batches(train, epoch=3, num_workers=1), expected)
    assert equal(batches(train, epoch=3, num_workers=2), expected)
    assert equal(batches(train, epoch=3, cache=open_cache(train, size=SIZE)), expected)


def test_epochs_and_seeds_differ(train):
    first = batches(train)
    assert not equal(batches(train, epoch=1), first)
    other = batches(train, seed=1)
    assert [batch["index"].tolist() for batch in other] == [batch["index"].tolist() for batch in first]
    assert not equal(other, first)


def test_persistent_workers_follow_the_epoch(train):
    sampler = CrossModalSampler(train.labels, train.modality, num_ids=3, num_instances=2, seed=7)
    loader = make_loader(train, size=SIZE, augment=NOISY, batch_sampler=sampler, num_workers=1)
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        assert equal(list(loader), batches(train, epoch=epoch))


def test_an_image_is_augmented_alike_in_any_batch(train):
    single = make_loader(train, size=SIZE, augment=Augment(), batch_size=1)
    whole = make_loader(train, size=SIZE, augment=Augment(), batch_size=50)
    assert torch.equal(torch.cat([b["image"] for b in single])[:50], next(iter(whole))["image"])


def test_without_a_sampler_all_images_come_in_order_and_unchanged(train):
    loader = make_loader(train, size=(48, 24), batch_size=7)
    got = list(loader)
    assert torch.cat([batch["index"] for batch in got]).tolist() == list(range(len(train)))
    assert len(loader) == len(got)
    pixels = np.array(Image.open(train.paths[0]).convert("RGB"))
    restored = got[0]["image"][0] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor(
        [0.485, 0.456, 0.406]
    ).view(3, 1, 1)
    np.testing.assert_allclose(restored.permute(1, 2, 0).numpy() * 255, pixels, atol=1e-3)


def test_accelerate_moves_both_epochs(train):
    accelerate = pytest.importorskip("accelerate")
    sampler = CrossModalSampler(train.labels, train.modality, num_ids=3, num_instances=2, seed=7)
    loader = make_loader(train, size=SIZE, augment=NOISY, batch_sampler=sampler)
    prepared = accelerate.Accelerator(cpu=True).prepare(loader)
    assert equal(list(prepared), batches(train, epoch=0))
    assert equal(list(prepared), batches(train, epoch=1))


def test_grey_files_and_other_sizes_are_brought_to_rgb_at_size(tmp_path):
    Image.fromarray(np.full((10, 6), 200, np.uint8)).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", SIZE)
    assert got.shape == (*SIZE, 3)
    assert (got == 200).all()


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"not an image", lambda data: b""]
)
def test_a_file_that_cannot_be_decoded_is_named(train, tmp_path, damage):
    path = tmp_path / "bad.jpg"
    path.write_bytes(damage(train.paths[0].read_bytes()))
    with pytest.raises(ValueError, match=re.escape(f"{path}: cannot be decoded")):
        read_image(path, SIZE)


def test_a_truncated_image_is_named_through_workers(sysu_copy):
    train = sysu.load(sysu_copy).train
    train.paths[4].write_bytes(train.paths[4].read_bytes()[:300])
    with pytest.raises(ValueError, match=re.escape(str(train.paths[4]))):
        list(make_loader(train, size=SIZE, num_workers=1))
    with pytest.raises(ValueError, match=re.escape(str(train.paths[4]))):
        open_cache(train, size=SIZE)


def test_a_missing_image_is_named(train, tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.jpg"))):
        read_image(tmp_path / "none.jpg", SIZE)


def test_the_cache_of_other_images_is_an_error(train):
    cache = open_cache(train.select(np.arange(5)), size=SIZE)
    with pytest.raises(
        ValueError, match=re.escape("cache: expected 5 images at (16, 32) as in samples, got 5 at (32,")
    ):
        make_loader(train.select(np.arange(5)), size=SIZE[::-1], cache=cache)
    with pytest.raises(ValueError, match="cache: expected 132 images at"):
        make_loader(train, size=SIZE, cache=cache)


def test_no_samples_is_an_error(train):
    with pytest.raises(ValueError, match="samples: expected at least one image"):
        make_loader(train.select(train.labels < 0), size=SIZE)


def test_accelerate_shards_whole_batches_over_processes(train):
    shard = pytest.importorskip("accelerate.data_loader").BatchSamplerShard
    sampler = CrossModalSampler(train.labels, train.modality, num_ids=3, num_instances=2)
    loader = make_loader(train, size=SIZE, batch_sampler=sampler)
    shares = [list(shard(loader.batch_sampler, num_processes=2, process_index=rank)) for rank in (0, 1)]
    expected = list(loader.batch_sampler)[: 2 * (len(sampler) // 2)]
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"num_workers": -1}, "num_workers: expected at least 0, got -1"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"size": (0, 4)}, r"size: expected \(height, width\)"),
        ({"size": (4,)}, r"size: expected \(height, width\)"),
    ],
)
def test_bad_arguments(train, options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(train, **({"size": SIZE} | options))
