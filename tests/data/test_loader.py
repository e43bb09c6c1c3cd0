import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vifast.data import Augment, CrossModalSampler, make_loader, open_cache, sysu
from vifast.data.augmentation import Exchange, MixUp
from vifast.data.images import read_image
from vifast.functional import augment

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


def test_a_loader_follows_the_epoch(train):
    sampler = CrossModalSampler(train.labels, train.modality, num_ids=3, num_instances=2, seed=7)
    loader = make_loader(train, size=SIZE, augment=NOISY, batch_sampler=sampler, num_workers=1)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        assert equal(list(loader), batches(train, epoch=epoch))
    loader.start_at(1, 2)
    assert equal(list(loader), batches(train, epoch=1)[2:])


def test_an_epoch_without_a_sampler_of_epochs(train):
    loader = make_loader(train, size=SIZE, augment=NOISY, batch_size=50)
    first = list(loader)
    loader.set_epoch(1)
    other = list(loader)
    assert [batch["index"].tolist() for batch in other] == [batch["index"].tolist() for batch in first]
    assert not equal(other, first)


def test_two_iterations_at_a_time_and_one_that_is_left(train):
    expected = batches(train)
    loader = make_loader(
        train,
        size=SIZE,
        augment=NOISY,
        num_workers=2,
        batch_sampler=CrossModalSampler(train.labels, train.modality, num_ids=3, num_instances=2, seed=7),
    )
    next(iter(loader))
    assert all(equal([a, b], [c, c]) for a, b, c in zip(loader, loader, expected, strict=True))


def test_dtype_and_layout(train):
    (plain, *_), (low, *_) = (list(make_loader(train, size=SIZE, **o)) for o in (
        {}, {"dtype": torch.bfloat16, "channels_last": True}))  # fmt: skip
    assert low["image"].dtype == torch.bfloat16
    assert low["image"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain["image"].bfloat16(), low["image"])


def test_mixing_takes_partners_of_the_batch(train):
    sampler = CrossModalSampler(train.labels, train.modality, num_ids=3, num_instances=2, seed=7)
    policy = Augment(flip=0.0, pad=0, mixup_cross=MixUp(p=1.0))
    mixed, plain = (next(iter(make_loader(train, size=SIZE, augment=a, batch_sampler=sampler))) for a in (policy, None))
    moved = (mixed["image"] != plain["image"]).flatten(1).any(1)
    assert torch.equal(moved, plain["modality"] == 0)


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


def test_auxiliary_views_are_drawn_anew_and_show_one_channel(train):
    """Every visible image once more, whatever its batch."""
    policy = Augment(pad=4, flip=0.5)
    options = {"size": SIZE, "augment": policy, "seed": 5}
    loader = make_loader(train, auxiliary=True, batch_size=9, **options)
    loader.set_epoch(2)
    plain = make_loader(train, batch_size=9, **options)
    plain.set_epoch(2)
    different, shown = 0, set()
    for batch, usual in zip(loader, plain, strict=True):
        auxiliary = batch.pop("auxiliary")
        assert equal([batch], [usual])
        index = batch["index"][batch["modality"] == 0]
        assert len(auxiliary) == len(index)
        if not len(index):
            continue
        one_channel = replace(policy, exchange_visible=Exchange(channel=1.0))
        params = one_channel.draw(index, torch.zeros_like(index), SIZE, seed=5, epoch=2, view=1)
        raw = np.stack([read_image(train.paths[i], SIZE, "bilinear") for i in index])
        assert torch.equal(auxiliary, augment(torch.from_numpy(raw), params))
        shown |= set(params.column("red").tolist())
        first = policy.draw(index, torch.zeros_like(index), SIZE, seed=5, epoch=2)
        different += (first.column("dx") != params.column("dx")).sum().item()
    assert different > 0
    assert shown == {0, 1, 2}
    assert "auxiliary" not in next(iter(loader.plain()))


def test_auxiliary_views_need_a_policy_that_leaves_colours(train):
    with pytest.raises(ValueError, match="auxiliary: expected an augment that does not mix images, got None"):
        make_loader(train, size=SIZE, auxiliary=True)
    with pytest.raises(ValueError, match="auxiliary: expected an augment that does not mix images, got Augment"):
        make_loader(train, size=SIZE, auxiliary=True, augment=Augment(mixup_cross=MixUp()))
    with pytest.raises(ValueError, match="cutswap: expected p 0 in modality 'v'"):
        make_loader(train, size=SIZE, auxiliary=True, augment=Augment.preset("dakd"))


def test_weak_views_are_cropped_and_flipped_alone(train):
    """Every image once more, by draws of its own; the first view stays as it is."""
    policy, options = Augment.preset("dakd", pad=4), {"size": SIZE, "batch_size": 9, "seed": 5}
    loader = make_loader(train, augment=policy, weak=True, **options)
    usual = make_loader(train, augment=policy, **options)
    loader.set_epoch(2)
    usual.set_epoch(2)
    for batch, plain in zip(loader, usual, strict=True):
        weak = batch.pop("weak")
        assert equal([batch], [plain])
        params = Augment(pad=4).draw(batch["index"], batch["modality"], SIZE, seed=5, epoch=2, view=2)
        raw = np.stack([read_image(train.paths[i], SIZE, "bilinear") for i in batch["index"]])
        assert torch.equal(weak, augment(torch.from_numpy(raw), params))
        assert not torch.equal(weak, batch["image"])
    assert "weak" not in next(iter(loader.plain()))
    with pytest.raises(ValueError, match="weak: expected an augment, whose crop and flip it takes, got None"):
        make_loader(train, size=SIZE, weak=True)


@pytest.mark.parametrize("cached", [False, True])
def test_the_plain_images_of_a_loader_that_trains(train, cached):
    options = {"size": SIZE, "cache": open_cache(train, size=SIZE) if cached else None}
    sampler = CrossModalSampler(train.labels, train.modality, num_ids=3, num_instances=2)
    loader = make_loader(train, augment=NOISY, batch_sampler=sampler, **options)
    assert equal(list(loader.plain(7)), list(make_loader(train, batch_size=7, **options)))
    assert loader.batch_sampler is sampler


@pytest.mark.parametrize(("batch_size", "ranks"), [(5, 2), (5, 3), (64, 2)])
def test_processes_share_whole_batches_in_turn(train, batch_size, ranks):
    loader = make_loader(train, size=SIZE, batch_size=batch_size)
    batches = list(loader)
    shares = [list(loader.share(rank, ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    in_turn = [batch for group in zip(*shares, strict=True) for batch in group]
    assert equal(in_turn[: len(batches)], batches)
    assert equal(in_turn[len(batches) :], batches[: len(in_turn) - len(batches)])


def test_accelerate_leaves_a_loader_as_it_is(train):
    accelerate = pytest.importorskip("accelerate")
    loader = make_loader(train, size=SIZE)
    assert accelerate.Accelerator(cpu=True).prepare(loader) is loader


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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_is_named_or_replaced(sysu_copy, num_workers, caplog):
    train = sysu.load(sysu_copy).train
    bad = train.paths[4]
    bad.write_bytes(bad.read_bytes()[:300])
    options = {"size": SIZE, "loader": "pillow", "num_workers": num_workers, "batch_size": 7}
    with pytest.raises(ValueError, match=re.escape(f"{bad}: cannot be decoded")):
        list(make_loader(train, **options))
    with pytest.raises(ValueError, match=re.escape(str(bad))):
        open_cache(train, size=SIZE)
    loader = make_loader(train, on_damage="skip", **options)
    index = torch.cat([batch["index"] for batch in loader])
    (moved,) = (index != torch.arange(len(train))).nonzero().flatten().tolist()
    other = int(index[4])
    assert (moved, train.labels[other], train.modality[other]) == (4, train.labels[4], train.modality[4])
    assert caplog.text.count(str(bad)) == 1
    assert f"in its place: {train.paths[other]}" in caplog.text
    assert equal(list(loader), list(loader))


def test_an_identity_without_another_image_is_an_error(sysu_copy):
    train = sysu.load(sysu_copy).train
    alone = np.flatnonzero((train.labels == 0) & (train.modality == 1))
    for row in alone:
        train.paths[row].write_bytes(b"")
    with pytest.raises(ValueError, match="label 0 has no other infrared image that can be decoded"):
        list(make_loader(train, size=SIZE, on_damage="skip", loader="pillow"))


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected an integer >= 1, got 0"),
        ({"num_workers": -1}, "num_workers: expected an integer >= 0, got -1"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
        ({"loader": "opencv"}, "loader: expected one of auto, dali, pillow, got 'opencv'"),
        ({"resample": "cubic"}, "resample: expected one of bilinear, lanczos, got 'cubic'"),
        ({"on_damage": "ignore"}, "on_damage: expected one of error, skip, got 'ignore'"),
        ({"size": (0, 4)}, r"size: expected \(height, width\)"),
        ({"size": (4,)}, r"size: expected \(height, width\)"),
    ],
)
def test_bad_arguments(train, options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(train, **({"size": SIZE} | options))
