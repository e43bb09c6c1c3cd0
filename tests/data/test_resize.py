"""resize against its definition and, one direction at a time, against Pillow of any version: equal to the bit."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from vifast.data.resize import RESAMPLE, resize, resize_ref

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}
SIDES = [(1, 1), (1, 7), (7, 1), (3, 5), (16, 16), (17, 40), (33, 12), (50, 30), (61, 200)]


@pytest.fixture(params=RESAMPLE)
def resample(request):
    return request.param


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow(image, size, resample):
    """Rows first, as Pillow up to version 12 does in one call."""
    narrow = Image.fromarray(image).resize((size[1], image.shape[0]), FILTERS[resample])
    return np.asarray(narrow.resize(size[::-1], FILTERS[resample]))


def test_hand_made():
    image = np.array([[[0, 10, 255], [100, 10, 0]]], np.uint8)
    assert resize([image], (1, 1))[0, 0, 0].tolist() == [50, 10, 128]  # 127.5 rounds up
    assert resize([image], (1, 4))[0, 0, :, 0].tolist() == [0, 25, 75, 100]
    edge = np.repeat(np.array([0, 0, 0, 255, 255, 255], np.uint8), 3).reshape(1, 6, 3)
    rings = resize([edge], (1, 12), "lanczos")[0, 0, :, 0].astype(int)
    assert rings.tolist() == resize_ref(edge, (1, 12), "lanczos")[0, :, 0].tolist()
    assert rings[0] > 0 or rings[2] > 0  # overshoot that is not cut off rings


@cache
def expected(height, width, size, resample):
    return resize_ref(noise(height, width), size, resample)


def test_definition(resample, isa):
    for height, width in SIDES:
        for size in SIDES:
            got = resize([noise(height, width)], size, resample)[0]
            np.testing.assert_array_equal(got, expected(height, width, size, resample), f"{(height, width)} to {size}")


def test_pillow(resample, isa):
    images = [noise(40 + 37 * k, 25 + 11 * k, seed=k) for k in range(12)]
    for size in ((128, 64), (256, 128), (90, 301)):
        got = resize(images, size, resample)
        for image, one in zip(images, got, strict=True):
            np.testing.assert_array_equal(one, pillow(image, size, resample))


def test_pillow_in_one_call_is_off_by_one_at_most(resample):
    """Pillow 13 does columns first where the height shrinks; where nothing is cut off at 0 or 255, that is rounding."""
    for seed in range(6):
        image = 96 + noise(300 - 40 * seed, 100 + 30 * seed, seed) // 4
        size = (144, 72)
        whole = np.asarray(Image.fromarray(image).resize(size[::-1], FILTERS[resample])).astype(int)
        off = np.abs(resize([image], size, resample)[0] - whole)
        assert off.max() <= 1


def test_the_same_size_is_a_copy(resample):
    image = noise(9, 6)
    got = resize([image], (9, 6), resample)
    np.testing.assert_array_equal(got[0], image)
    assert not np.shares_memory(got, image)


def test_tensors_an_empty_list_and_memory_that_is_given():
    image = noise(8, 4)
    out = np.zeros((2, 3, 5, 3), np.uint8)
    assert resize([torch.from_numpy(image), image], (3, 5), out=out) is out
    np.testing.assert_array_equal(out[0], out[1])
    np.testing.assert_array_equal(out[0], resize_ref(image, (3, 5), "bilinear"))
    assert resize([], (3, 5)).shape == (0, 3, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([noise(4, 4)], (0, 4)), ValueError, r"size: expected \(height, width\) in pixels, got \(0, 4\)"),
        (([noise(4, 4)], (4, 4), "cubic"), ValueError, "resample: expected one of bilinear, lanczos, got 'cubic'"),
        (([noise(4, 4)[..., :2]], (4, 4)), ValueError, r"images: expected shape \[any, any, 3\], got \[4, 4, 2\]"),
        (([noise(4, 4)[:0]], (4, 4)), ValueError, "images: expected at least one pixel"),
        (([noise(4, 4)[:, ::2]], (4, 4)), ValueError, "images: expected a contiguous tensor"),
        (([noise(4, 4).astype(np.int32)], (4, 4)), TypeError, "images: expected dtype uint8, got int32"),
        (([None], (4, 4)), TypeError, "images: expected a tensor or an array"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        resize(*arguments)


def test_memory_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"out: expected shape \[1, 4, 4, 3\], got \[1, 4, 5, 3\]"):
        resize([noise(4, 4)], (4, 4), out=np.zeros((1, 4, 5, 3), np.uint8))
