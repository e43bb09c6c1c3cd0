import numpy as np
import pytest
import torch

from vifast.data.transforms import IMAGENET_MEAN, IMAGENET_STD, PAD_GREY, Augment, normalize

OFF = {"flip": 0.0, "pad": 0, "exchange": 0.0, "erase": 0.0}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)


def apply(image, modality=0, seed=0, **options):
    return Augment(**(OFF | options))(image, modality, np.random.default_rng(seed))


def test_normalize_against_its_formula(image):
    expected = (torch.from_numpy(image).double() / 255 - torch.from_numpy(IMAGENET_MEAN).double()) / torch.from_numpy(
        IMAGENET_STD
    ).double()
    got = normalize(image)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), expected.permute(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_everything_off_only_normalizes(image):
    assert torch.equal(apply(image), normalize(image))


def test_flip(image):
    assert torch.equal(apply(image, flip=1.0), normalize(image).flip(2))


def test_crop_is_a_window_of_the_padded_image(image):
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), constant_values=PAD_GREY)
    windows = {normalize(padded[t : t + 12, left : left + 8]).numpy().tobytes() for t in range(7) for left in range(7)}
    seen = {apply(image, pad=3, seed=seed).numpy().tobytes() for seed in range(200)}
    assert seen <= windows
    assert len(seen) > 40  # of 49


def test_exchange_shows_one_channel_or_the_luminance_and_spares_infrared(image):
    grey = (image @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    planes = [*image.transpose(2, 0, 1), grey]
    choices = {normalize(np.repeat(plane[..., None], 3, axis=2)).numpy().tobytes() for plane in planes}
    assert {apply(image, exchange=1.0, seed=seed).numpy().tobytes() for seed in range(40)} == choices
    assert torch.equal(apply(image, modality=1, exchange=1.0), normalize(image))


def test_erase_sets_one_rectangle_of_the_documented_size_to_zero():
    image = np.full((64, 32, 3), 255, np.uint8)
    for seed in range(100):
        erased = (apply(image, erase=1.0, seed=seed) == 0).all(0).numpy()
        rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert erased.sum() == height * width
        assert 0.015 < height * width / erased.size < 0.35
        assert 0.2 < height / width < 4.5


def test_same_generator_same_result_and_probabilities_are_kept(image):
    augment = Augment(flip=0.3, pad=0, erase=0.0)
    assert torch.equal(augment(image, 0, np.random.default_rng(1)), augment(image, 0, np.random.default_rng(1)))
    plain = normalize(image)
    flips = sum(not torch.equal(augment(image, 0, np.random.default_rng(seed)), plain) for seed in range(1000))
    assert 240 < flips < 360


def test_the_input_is_not_written_to(image):
    before = image.copy()
    apply(image, flip=1.0, pad=2, exchange=1.0, erase=1.0)
    assert (image == before).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip: expected a probability in 0..1, got 1.5"),
        ({"exchange": -0.1}, "exchange: expected a probability"),
        ({"erase": float("nan")}, "erase: expected a probability"),
        ({"pad": -1}, "pad: expected at least 0, got -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Augment(**options)
