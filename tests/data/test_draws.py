"""Philox and the records it draws: known answers, C++ against NumPy, and every statistic of dakd 8.1 to 8.3."""

import numpy as np
import pytest

from vifast.data import Augment, draws
from vifast.data.augmentation import CutMix, CutSwap, Erase, Exchange, MixUp
from vifast.functional import AugmentParams
from vifast.kernels.augment import ERASED, GRAY, NORMALIZED, ONE, RAW

MANY = 1_000_000
SIZE = (384, 128)
KEY = {"seed": 3, "epoch": 5}


@pytest.mark.parametrize(  # of Random123's kat_vectors
    ("counter", "key", "words"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter, key, words):
    assert draws.philox(np.array(counter, np.uint64), key).tolist() == words


def test_numbers_of_words():
    ends = np.array([0, 2**31, 2**32 - 1], np.uint32)
    assert draws.unit(ends).tolist() == [0.0, 0.5, 1 - 2.0**-24]
    assert draws.below(ends, 5).tolist() == [0, 2, 4]
    assert draws.between(ends[:2], 0.25, 0.75).tolist() == [0.25, 0.5]


EVERYTHING = Augment(
    pad=7,
    cutswap=CutSwap(fill="permute", invert=True, stage="raw", modalities=("v", "i")),
    cutmix_cross=CutMix(modalities=("v",)),
    mixup_cross=MixUp(modalities=("i",)),
    erase=Erase(p=0.7),
)
POLICIES = {name: Augment.preset(name) for name in Augment.PRESETS} | {
    "everything": EVERYTHING,
    "gray": Augment(flip=0.1, cutswap=CutSwap(p=1, fill="gray", scope="image", modalities=("i",))),
    "tight": Augment(erase=Erase(p=1, area=(0.5, 1.0), aspect=(0.01, 100.0), tries=3)),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("size", [SIZE, (5, 3), (1, 1)])
def test_cpp_draws_what_the_definition_draws(name, size):
    index = np.concatenate([np.arange(3000), 2**32 + np.arange(1000)])
    modality = (index * 7 // 3) % 2
    key = {"seed": 2**32 - 1, "epoch": 9, "view": 1}
    table = POLICIES[name]._table
    ours = draws.draw(index, modality, table, size, **key)
    assert np.array_equal(ours, draws.draw_ref(index, modality, table, size, **key))


def columns(policy, modality=0, n=MANY, size=SIZE, **options):
    made = policy.draw(np.arange(n), np.full(n, modality), size, **KEY, **options)
    return {name: made.column(name).numpy() for name in AugmentParams.COLUMNS}


def share(hit):
    return hit.mean()


def near(p, n=MANY):
    """Five standard deviations of a share."""
    return pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5)


def uniform(values, n):
    """0..n-1 each as often: chi-square within six standard deviations of its mean."""
    counts = np.bincount(values, minlength=n)
    assert len(counts) == n
    expected = len(values) / n
    assert ((counts - expected) ** 2 / expected).sum() == pytest.approx(n - 1, abs=6 * (2 * (n - 1)) ** 0.5)


def test_flip_and_crop():
    r = columns(Augment(flip=0.3, pad=10))
    assert share(r["flip"] == 1) == near(0.3)
    uniform(r["dy"] + 10, 21)
    uniform(r["dx"] + 10, 21)
    assert abs(np.corrcoef(r["dy"], r["dx"])[0, 1]) < 0.005
    assert abs(np.corrcoef(r["flip"], r["dx"])[0, 1]) < 0.005


def test_cutswap_area():
    """dakd 8.1 and oracle 7: area share 0.09 to 0.36, mean 0.2025; on an image so large that floor takes nothing."""
    r = columns(Augment.preset("dakd", cutswap=CutSwap(p=1.0)), size=(100_000, 100_000))
    h, w = r["color_height"] / 1e5, r["color_width"] / 1e5
    assert np.mean(h * w) == pytest.approx(0.2025, abs=0.001)
    assert min(h.min(), w.min()) == pytest.approx(0.3, abs=1e-4)
    assert max(h.max(), w.max()) < 0.6
    uniform(((h[h < 0.6] - 0.3) / 0.3 * 50).astype(int), 50)
    assert abs(np.corrcoef(h, w)[0, 1]) < 0.005


def test_cutswap_probability_channel_and_place():
    r = columns(Augment.preset("dakd"))
    hit = r["color_height"] > 0
    assert share(hit) == near(0.5)
    assert (r["stage"][hit] == NORMALIZED).all()
    assert np.array_equal(r["red"], r["green"])
    assert np.array_equal(r["red"], r["blue"])
    uniform(r["red"][hit], 3)
    h = r["color_height"]
    for chosen in (h[hit].min(), h[hit].max()):
        places = r["color_top"][hit & (h == chosen)]
        uniform(places, SIZE[0] - chosen + 1)  # both ends are reached
    assert (h[hit].min(), h[hit].max()) == (115, 230)


@pytest.mark.parametrize("fill", ["gray", "permute"])
def test_cutswap_fills(fill):
    r = columns(Augment(cutswap=CutSwap(p=1, fill=fill, stage="raw", invert=True)), n=100_000)
    assert (r["stage"] == RAW).all()
    assert (r["outside"] == 1).all()
    code = 16 * r["red"] + 4 * r["green"] + r["blue"]
    if fill == "gray":
        assert (code == 21 * GRAY).all()
    else:
        orders, index = np.unique(code, return_inverse=True)
        assert orders.tolist() == [9, 18, 24, 33, 36]
        uniform(index, 5)


def test_cutswap_of_the_whole_image():
    r = columns(Augment.preset("dakd", cutswap=CutSwap(scope="image")), n=100_000)
    hit = r["color_height"] > 0
    assert share(hit) == near(0.5, 100_000)
    assert (r["color_height"][hit] == SIZE[0]).all()
    assert (r["color_width"][hit] == SIZE[1]).all()


def test_cutswap_spares_the_other_modality_and_p_0_nobody_is_changed():
    assert not columns(Augment(cutswap=CutSwap()), modality=1, n=1000)["color_height"].any()
    assert not columns(Augment(cutswap=CutSwap(p=0)), n=1000)["color_height"].any()


def test_channel_random_erasing():
    """dakd 8.2: half of the images; area and aspect uniform, as far as the box fits."""
    size = (10_000, 10_000)
    r = columns(Augment.preset("dakd"), size=size)
    hit = r["erase_height"] > 0
    assert share(hit) == near(0.5)
    h, w = r["erase_height"][hit] / 1e4, r["erase_width"][hit] / 1e4
    area, aspect = h * w, h / w
    assert area.min() == pytest.approx(0.02, abs=1e-4)
    assert area.max() == pytest.approx(0.4, abs=1e-3)
    assert aspect.min() == pytest.approx(0.3, abs=1e-3)
    assert aspect.max() == pytest.approx(1 / 0.3, abs=1e-2)
    assert max(h.max(), w.max()) < 1
    # A box fits where area * aspect < 1 and area / aspect < 1, which below 0.3 is always so.
    small, inner = area[(area > 0.02) & (area < 0.3)], aspect[(area < 0.3) & (aspect > 0.4) & (aspect < 3.2)]
    uniform(((small - 0.02) / 0.28 * 40).astype(int), 40)
    uniform(np.minimum((inner - 0.4) / 2.8 * 40, 39).astype(int), 40)


def test_erased_places_reach_both_ends():
    r = columns(Augment(erase=Erase(p=1, area=(0.1, 0.1), aspect=(1.0, 1.0))), size=(40, 30))
    assert set(r["erase_height"]) == {11}
    uniform(r["erase_top"], 30)
    uniform(r["erase_left"], 20)


def test_erasing_gives_up_after_its_tries():
    """A share q of the boxes fits: after n tries 1 - (1 - q)^n are erased."""
    fits = share(columns(Augment(erase=Erase(p=1, area=(0.3, 0.9), tries=1)))["erase_height"] > 0)
    assert 0.2 < fits < 0.8
    thrice = share(columns(Augment(erase=Erase(p=1, area=(0.3, 0.9), tries=3)))["erase_height"] > 0)
    assert thrice == pytest.approx(1 - (1 - fits) ** 3, abs=0.005)


def test_infrared_channels_and_luminance():
    """dakd 8.3: each channel a quarter, luminance and nothing an eighth each; after erasing."""
    r = columns(Augment.preset("dakd"), modality=1)
    hit = r["color_height"] > 0
    assert share(~hit) == near(0.125)
    assert (r["stage"][hit] == ERASED).all()
    for source, p in ((0, 0.25), (1, 0.25), (2, 0.25), (GRAY, 0.125)):
        assert share(hit & (r["red"] == source)) == near(p)


def test_cutmix_box():
    r = columns(Augment(cutmix_cross=CutMix(p=0.5)), size=(10_000, 10_000), partner=np.arange(MANY))
    hit = r["mix_height"] > 0
    assert share(hit) == near(0.5)
    assert (r["weight"] == 0).all()
    whole = hit & (r["mix_top"] > 0) & (r["mix_left"] > 0)
    whole &= (r["mix_top"] + r["mix_height"] < 10_000) & (r["mix_left"] + r["mix_width"] < 10_000)
    assert np.array_equal(r["mix_height"][whole], r["mix_width"][whole])  # one ratio
    assert r["mix_height"].max() == 9000
    # A centre at the image's edge leaves half of the least box.
    assert r["mix_height"][hit].min() >= 500
    center = r["mix_top"][whole] + r["mix_height"][whole] / 2
    assert center.mean() == pytest.approx(5000, abs=25)


def test_cutmix_ratio_is_a_clipped_normal():
    r = columns(Augment(cutmix_cross=CutMix(p=1.0)), size=(100_000, 100_000), partner=np.arange(MANY))
    inside = (r["mix_top"] > 0) & (r["mix_top"] + r["mix_height"] < 100_000)
    ratio = r["mix_height"][inside] / 1e5
    # Seen whole with a probability of 1 - ratio: weighed by its inverse the ratios are as they were drawn.
    weight = 1 / (1 - ratio)
    for value, p in ((0.4, 0.1587), (0.7, 0.5), (0.85, 0.6915)):
        assert (weight * (ratio <= value)).sum() / weight.sum() == pytest.approx(p, abs=0.006)
    assert ratio.min() == pytest.approx(0.1, abs=1e-4)
    assert ratio.max() == pytest.approx(0.9, abs=1e-4)


def test_mixup_weight():
    """Beta(1.2, 1.2) has variance 1 / (4 * 3.4), and half of it lies on each side of one half."""
    r = columns(Augment(mixup_cross=MixUp(p=0.5, limits=(0.0, 1.0))), partner=np.arange(MANY))
    hit = r["mix_height"] > 0
    assert share(hit) == near(0.5)
    weight = r["weight"][hit] / ONE
    assert weight.mean() == pytest.approx(0.5, abs=0.002)
    assert weight.var() == pytest.approx(1 / 13.6, abs=0.001)
    clipped = columns(Augment(mixup_cross=MixUp(p=1)), n=100_000, partner=np.arange(100_000))["weight"]
    assert (clipped.min(), clipped.max()) == (round(0.2 * ONE), round(0.8 * ONE))


OFF = {
    "flip": {"flip": 0.0},
    "crop": {"pad": 0},
    "cutswap": {"cutswap": CutSwap(p=0)},
    "erase": {"erase": Erase(p=0)},
    "exchange": {"exchange_infrared": Exchange()},
}
TOUCHED = {"flip": "flip", "crop": "d", "cutswap": "red green blue stage color", "erase": "erase"}
TOUCHED["exchange"] = TOUCHED["cutswap"]


@pytest.mark.parametrize("name", OFF)
def test_an_option_turned_off_leaves_the_draws_of_the_others(name):
    index, modality = np.arange(500), np.arange(500) % 2
    on = Augment.preset("dakd").draw(index, modality, SIZE, **KEY)
    off = Augment.preset("dakd", **OFF[name]).draw(index, modality, SIZE, **KEY)
    for column in AugmentParams.COLUMNS:
        if not column.startswith(tuple(TOUCHED[name].split())):
            assert (on.column(column) == off.column(column)).all(), column
    assert (on.records != off.records).any()
