import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast.data import Augment
from vifast.data.augmentation import CutMix, CutSwap, Erase, Exchange, MixUp, partners
from vifast.functional import AugmentParams, augment
from vifast.functional.augment import IMAGENET_MEAN, IMAGENET_STD

SIZE = (48, 24)
PLAIN = {"flip": 0.0, "pad": 0}


def images(n, seed=0):
    return torch.randint(0, 256, (n, *SIZE, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def normalized(batch):
    return augment(batch, AugmentParams.identity(len(batch)))


def augmented(policy, batch, modality=0, **options):
    index = np.arange(len(batch))
    params = policy.draw(index, np.full(len(batch), modality), SIZE, seed=1, epoch=2, **options)
    return augment(batch, params), params


def test_the_same_records_for_any_split_and_order():
    policy = Augment.preset("dakd")
    index, modality = np.random.default_rng(0).permutation(200), np.arange(200) % 2
    whole = policy.draw(index, modality, SIZE, seed=7, epoch=1).records
    parts = [policy.draw(index[k : k + 7], modality[k : k + 7], SIZE, seed=7, epoch=1) for k in range(0, 200, 7)]
    assert torch.equal(AugmentParams.cat(parts).records, whole)
    assert torch.equal(policy.draw(index[::-1], modality[::-1], SIZE, seed=7, epoch=1).records, whole.flip(0))


@pytest.mark.parametrize("other", [{"seed": 8}, {"epoch": 2}, {"view": 1}])
def test_seed_epoch_and_view_differ(other):
    index, modality = np.arange(50), np.zeros(50, int)
    key = {"seed": 7, "epoch": 1}
    one = Augment.preset("idkl").draw(index, modality, SIZE, **key).records
    assert not torch.equal(one, Augment.preset("idkl").draw(index, modality, SIZE, **(key | other)).records)


def test_cutswap_oracle():
    """dakd 14.7: outside the box the bits of the image, inside three equal channels: those of the source."""
    batch = images(200)
    plain = normalized(batch)
    out, params = augmented(Augment(**PLAIN, cutswap=CutSwap()), batch)
    hits = 0
    for k in range(len(batch)):
        top, left, h, w, source = (
            params.column(name)[k].item() for name in ("color_top", "color_left", "color_height", "color_width", "red")
        )
        wanted = plain[k].clone()
        wanted[:, top : top + h, left : left + w] = plain[k, source, top : top + h, left : left + w]
        assert torch.equal(out[k], wanted)
        hits += h > 0
    assert 70 < hits < 130


def test_cutswap_of_the_whole_image_makes_all_channels_equal_and_p_0_nothing():
    batch = images(50)
    out, _ = augmented(Augment(**PLAIN, cutswap=CutSwap(p=1, scope="image")), batch)
    assert torch.equal(out, out[:, :1].expand_as(out))
    out, _ = augmented(Augment(**PLAIN, cutswap=CutSwap(p=0)), batch)
    assert torch.equal(out, normalized(batch))


def test_visible_is_replicated_then_erased_and_infrared_erased_then_replicated():
    batch = images(400)
    policy = Augment(**PLAIN, cutswap=CutSwap(p=1, scope="image"), erase=Erase(p=1), exchange_infrared=Exchange(1.0))
    for modality in (0, 1):
        out, params = augmented(policy, batch, modality)
        for k in range(len(batch)):
            top, left = params.column("erase_top")[k].item(), params.column("erase_left")[k].item()
            source = params.column("red")[k].item()
            fill = Erase().fill if modality == 0 else [Erase().fill[source]] * 3
            assert_close(out[k, :, top, left], torch.tensor(fill))


def test_a_crop_is_a_window_of_the_padded_image():
    batch = images(1)
    policy = Augment(flip=0.0, pad=3, pad_value=127)
    padded = torch.nn.functional.pad(batch.permute(0, 3, 1, 2), (3, 3, 3, 3), value=127).permute(0, 2, 3, 1)
    for epoch in range(20):
        params = policy.draw([0], [0], SIZE, seed=0, epoch=epoch)
        top, left = params.column("dy").item() + 3, params.column("dx").item() + 3
        window = padded[:, top : top + SIZE[0], left : left + SIZE[1]]
        assert torch.equal(augment(batch, params), normalized(window))


def test_mixing_takes_the_partner_of_the_other_modality():
    labels, modality = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    policy = Augment(**PLAIN, mixup_cross=MixUp(p=1))
    assert policy.mixes
    batch = images(4)
    params = policy.draw(np.arange(4), modality, SIZE, seed=0, epoch=0, partner=partners(labels, modality))
    out, plain = augment(batch, params), normalized(batch)
    for k, other in ((0, 1), (2, 3)):
        weight = params.column("weight")[k].item() / 65536
        assert_close(out[k], weight * plain[k] + (1 - weight) * plain[other], rtol=1e-5, atol=1e-6)
        assert torch.equal(out[other], plain[other])


def test_partners():
    labels, modality = np.array([4, 4, 4, 9, 7, 7]), np.array([0, 0, 1, 0, 1, 0])
    assert partners(labels, modality).tolist() == [2, 2, 0, 3, 5, 4]
    assert partners(torch.tensor([], dtype=torch.int64), torch.tensor([])).tolist() == []


def test_an_image_without_a_partner_stays():
    batch = images(2)
    policy = Augment(**PLAIN, cutmix_cross=CutMix(p=1, modalities=("v", "i")))
    out, _ = augmented(policy, batch, partner=[0, 1])
    assert torch.equal(out, normalized(batch))


@pytest.mark.parametrize(
    ("name", "fill", "pad_value"),
    [("idkl", (0, 0, 0), 127), ("dakd", (0.4914, 0.4822, 0.4465), 0), ("ckda", (0.485, 0.456, 0.406), 0)],
)
def test_presets_carry_their_constants(name, fill, pad_value):
    params = Augment.preset(name).draw([0], [0], SIZE, seed=0, epoch=0)
    assert params.fill == fill
    assert params.pad == pad_value
    assert (params.mean, params.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_only_caj_mce_and_dakd_change_colours():
    for name in Augment.PRESETS:
        policy = Augment.preset(name)
        changes = policy.cutswap.p > 0 or policy.exchange_infrared.channel > 0
        assert changes == (name in ("caj", "mce", "dakd"))
    with pytest.raises(ValueError, match=r"^preset: expected one of agw, .*, got 'dakt'$"):
        Augment.preset("dakt")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Augment(flip=1.5), ValueError, "flip: expected 0 to 1, got 1.5"),
        (lambda: Augment(flip="1"), TypeError, "flip: expected a number, got str"),
        (lambda: Augment(pad=-1), ValueError, "pad: expected an integer >= 0, got -1"),
        (lambda: Augment(pad_value=256), ValueError, "pad_value: expected 0 to 255, got 256"),
        (lambda: CutSwap(p=-0.1), ValueError, "cutswap.p: expected 0 to 1, got -0.1"),
        (lambda: CutSwap(ratio=(0.6, 0.3)), ValueError, "cutswap.ratio: expected a rising range, got .*"),
        (lambda: CutSwap(scope="box"), ValueError, "cutswap.scope: expected one of region, image, got 'box'"),
        (lambda: CutSwap(fill="grey"), ValueError, "cutswap.fill: expected one of channel, gray, permute, got 'grey'"),
        (lambda: CutSwap(invert=1), TypeError, "cutswap.invert: expected True or False, got int"),
        (lambda: CutSwap(modalities=("x",)), ValueError, "cutswap.modalities: expected one of v, i, got 'x'"),
        (lambda: CutSwap(modalities=()), ValueError, "cutswap.modalities: expected at least one of v, i, got none"),
        (lambda: Exchange(0.8, 0.3), ValueError, "exchange: channel .* gray: expected 0 to 1, got 1.1"),
        (lambda: CutMix(std=-1), ValueError, "cutmix_cross.std: expected at least 0, got -1"),
        (lambda: MixUp(alpha=0), ValueError, "mixup_cross.alpha: expected a number above 0, got 0"),
        (lambda: Erase(area=(0.1, 1.2)), ValueError, r"erase.area\[1\]: expected 0 to 1, got 1.2"),
        (lambda: Erase(aspect=(0, 2)), ValueError, r"erase.aspect\[0\]: expected a number above 0, got 0"),
        (lambda: Erase(tries=0), ValueError, "erase.tries: expected an integer >= 1, got 0"),
        (lambda: Erase(fill=(0, 1)), ValueError, "erase.fill: expected 3 numbers, got 2"),
        (
            lambda: Augment(cutswap=CutSwap(p=0.5), exchange_visible=Exchange(0.5)),
            ValueError,
            "cutswap: expected p 0 in modality 'v', which has exchange, got 0.5",
        ),
        (
            lambda: Augment(cutmix_cross=CutMix(), mixup_cross=MixUp()),
            ValueError,
            "cutmix_cross: expected p 0 in modality 'v', which has mixup_cross, got 0.5",
        ),
    ],
)
def test_a_wrong_option_is_named(make, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        make()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": [-1, 0]}, ValueError, "index: expected at least 0, got -1"),
        ({"modality": [0]}, ValueError, "modality: expected one for each of index, got shapes .*"),
        ({"modality": [0, 2]}, ValueError, r"modality: expected 0 visible or 1 infrared, got \[0, 2\]"),
        ({"size": (0, 4)}, ValueError, "size: height: expected an integer >= 1, got 0"),
        ({"seed": 2**32}, ValueError, "seed: expected 0 to 4294967295, got 4294967296"),
        ({"epoch": -1}, ValueError, "epoch: expected an integer >= 0, got -1"),
        ({"view": 65536}, ValueError, "view: expected 0 to 65535, got 65536"),
        ({"partner": None}, ValueError, "partner: expected a row for every image, .*, got None"),
        ({"partner": [0]}, ValueError, r"partner: expected one for each of index, got shape \[1\]"),
    ],
)
def test_a_wrong_draw_is_named(change, error, message):
    given = {"index": [0, 1], "modality": [0, 1], "size": SIZE, "seed": 0, "epoch": 0, "partner": [1, 0]} | change
    with pytest.raises(error, match=f"^{message}$"):
        Augment(mixup_cross=MixUp()).draw(given.pop("index"), given.pop("modality"), given.pop("size"), **given)
