import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from vifast import functional as F
from vifast.functional import BlurJitterParams
from vifast.kernels import _C
from vifast.kernels.blur_jitter import ONE, blur_jitter, blur_jitter_ref, gaussian_taps
from vifast.testing import check_op


def batch(n, height=13, width=17, *, radius=10, seed=0):
    """Noise, and a record of every kind: as it is, jittered, blurred, both."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    factors = torch.rand(n, 2, generator=generator) * 2
    sigma = torch.rand(n, generator=generator) * 3 + 0.4
    factors[0::4], factors[2::4], sigma[0::4], sigma[1::4] = 1, 1, 0, 0
    return images, factors, torch.arange(n) % 3 == 1, gaussian_taps(sigma, radius)


def pillow(image, brightness, contrast, contrast_first):
    steps = [(ImageEnhance.Brightness, brightness), (ImageEnhance.Contrast, contrast)]
    out = Image.fromarray(image.numpy())
    for enhance, factor in steps[::-1] if contrast_first else steps:
        out = enhance(out).enhance(factor)
    return torch.from_numpy(np.array(out))


def gaussian(image, sigma, radius):
    """The blur in float64, not separated, before it is rounded: [H, W, 3]."""
    weight = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma).square())
    weight = torch.outer(weight, weight) / weight.sum().square()
    padded = torch.nn.functional.pad(image.double().permute(2, 0, 1), (radius,) * 4, mode="reflect")
    return torch.nn.functional.conv2d(padded[:, None], weight[None, None])[:, 0].permute(1, 2, 0)


@pytest.mark.parametrize("contrast_first", [False, True])
def test_jitter_is_pillows_bit_for_bit(contrast_first):
    images = torch.randint(0, 256, (600, 9, 7, 3), dtype=torch.uint8)
    images[::3] = images[::3] // 4 + 90  # little contrast, other means
    factors = torch.rand(600, 2) * 0.6 + 0.7
    factors[::5] = torch.randint(0, 17, (120, 2)) / 8  # products that end at a whole number or beyond 255
    params = BlurJitterParams.of(*factors.T, [0.0] * 600, contrast_first=contrast_first, kernel_size=1)
    for image, (brightness, contrast), out in zip(images, factors.tolist(), F.blur_jitter(images, params), strict=True):
        assert torch.equal(out, pillow(image, brightness, contrast, contrast_first))


def test_every_value_and_factor_is_pillows():
    image = torch.arange(256, dtype=torch.uint8)[None, :, None].expand(1, 256, 3).contiguous()
    for factor in torch.linspace(0, 3, 500).tolist():
        for brightness, contrast in ((factor, 1.0), (1.0, factor)):
            params = BlurJitterParams.of([brightness], [contrast], [0.0], kernel_size=1)
            assert torch.equal(F.blur_jitter(image[None], params)[0], pillow(image, brightness, contrast, False))


@pytest.mark.parametrize("kernel_size", [1, 3, 21])
def test_blur_is_the_rounded_gaussian(backend, kernel_size):
    """Where it is not, the exact sum lies within 2^-9 of a half, which taps in 2^-22 may move over it."""
    sigma = [0.0, 0.1, 0.3, 1.0, 3.0]
    images = torch.randint(0, 256, (5, 12, 43, 3), dtype=torch.uint8)
    params = BlurJitterParams.of([1.0] * 5, [1.0] * 5, sigma, kernel_size=kernel_size)
    blurred = F.blur_jitter(images.to(backend.device), params.to(backend.device)).cpu().double()
    for image, s, out in zip(images, sigma, blurred, strict=True):
        exact = gaussian(image, s or 1e-9, kernel_size // 2)
        differs = out != exact.round()
        assert ((out - exact)[differs].abs() < 0.5 + 2**-9).all()
        assert differs.sum() <= 2


def test_ties_go_to_the_even_number(backend):
    """Half of the middle, a fourth of each neighbour: sums in quarters along a row of one value in every column."""
    row = torch.tensor([1, 0, 1, 2, 3, 4], dtype=torch.uint8)
    image = row[None, None, :, None].expand(1, 3, 6, 3).contiguous()
    taps = torch.tensor([[ONE // 2, ONE // 4]], dtype=torch.int32)
    args = image, torch.ones(1, 2), torch.zeros(1, dtype=torch.bool), taps
    out = blur_jitter(*(x.to(backend.device) for x in args))
    assert out[0, 1, :, 0].tolist() == [0, 0, 1, 2, 3, 4]  # 0.5, 0.5, 1, 2, 3, 3.5: halves to 0, 0 and 4


def test_white_and_black_stay(backend):
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 11, 11, 3).contiguous()
    params = BlurJitterParams.of([1.0] * 2, [1.0] * 2, [3.0] * 2)
    assert torch.equal(F.blur_jitter(images.to(backend.device), params.to(backend.device)).cpu(), images)


@pytest.mark.parametrize(
    ("n", "height", "width", "radius"), [(4, 11, 11, 10), (4, 20, 45, 3), (1, 1, 1, 0), (0, 5, 5, 2)]
)
def test_every_back_end_has_the_bits_of_the_definition(backend, n, height, width, radius):
    args = batch(n, height, width, radius=radius)
    out = blur_jitter(*(x.to(backend.device) for x in args))
    assert torch.equal(out.cpu(), blur_jitter_ref(*args))


@pytest.mark.parametrize("width", [11, 21, 22, 64, 100])
def test_every_instruction_set_has_the_same_bits(isa, width):
    args = batch(8, 23, width)
    assert torch.equal(blur_jitter(*args), blur_jitter_ref(*args)), isa


def test_bits_do_not_depend_on_threads_or_batches(with_threads):
    args = batch(13, 31, 29)
    results = []
    for threads in (1, 2, 5):
        with_threads(threads)
        results.append(blur_jitter(*args))
    assert all(torch.equal(results[0], result) for result in results[1:])
    for i in range(13):
        assert torch.equal(blur_jitter(*(x[i : i + 1] for x in args)), results[0][i : i + 1])


def test_the_input_stays_and_strides_do_not_matter(backend):
    images, *records = (x.to(backend.device) for x in batch(4, radius=2))
    before = images.clone()
    transposed = images.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    assert torch.equal(blur_jitter(transposed, *records), blur_jitter(images, *records))
    assert torch.equal(images, before)


def test_op():
    check_op(blur_jitter, batch, length=1, outputs=1, sizes=(4, 5))


def test_records():
    params = BlurJitterParams.of([0.7, 1.0], [1.0, 1.3], [0.0, 2.0], contrast_first=[True, False])
    assert len(params) == 2
    assert params.taps.shape == (2, 11)
    assert (params.taps[:, 0] + 2 * params.taps[:, 1:].sum(1) == ONE).all()
    assert params.taps[0].tolist() == [ONE] + [0] * 10
    again = BlurJitterParams.cat([params[:1], params[1:]])
    for name in ("factors", "contrast_first", "taps"):
        assert torch.equal(getattr(again, name), getattr(params, name))
    images = batch(2)[0]
    assert torch.equal(F.blur_jitter(images, BlurJitterParams.identity(2)), images)
    assert torch.equal(F.blur_jitter(images, params)[1:], F.blur_jitter(images[1:], params[1:]))


IMAGES = torch.zeros(2, 11, 11, 3, dtype=torch.uint8)
PARAMS = BlurJitterParams.of([1.0] * 2, [1.0] * 2, [1.0] * 2)


@pytest.mark.parametrize(
    ("images", "params", "error", "message"),
    [
        ([0], PARAMS, TypeError, r"images: expected a tensor \[B, H, W, 3\], got list"),
        (IMAGES.float(), PARAMS, TypeError, "images: expected torch.uint8, got torch.float32"),
        (IMAGES[..., :2], PARAMS, ValueError, r"images: expected \[B, H, W, 3\] of at least one pixel, got shape .*"),
        (
            IMAGES[:, :10],
            PARAMS,
            ValueError,
            r"images: expected at least 11 x 11 pixels for a blur of 21 x 21, got shape \[2, 10, 11, 3\]",
        ),
        (IMAGES, None, TypeError, "params: expected BlurJitterParams, got NoneType"),
        (IMAGES[:1], PARAMS, ValueError, "params: expected 1 records as images, got 2"),
        (IMAGES, PARAMS.to("meta"), ValueError, "factors: expected device cpu as images, got meta"),
    ],
)
def test_a_wrong_argument_is_named(images, params, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        F.blur_jitter(images, params)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"brightness": [[1.0]]}, ValueError, r"brightness: expected shape \[B\], got \[1, 1\]"),
        ({"contrast": [1.0] * 3}, ValueError, r"contrast: expected shape \[2\] as brightness, got \[3\]"),
        ({"sigma": [1.0, -1.0]}, ValueError, r"sigma: expected finite numbers of at least 0, got \[1.0, -1.0\]"),
        ({"brightness": [1.0, float("nan")]}, ValueError, r"brightness: expected finite numbers .*"),
        ({"contrast": [1.0, float("inf")]}, ValueError, r"contrast: expected finite numbers .*"),
        ({"kernel_size": 20}, ValueError, "kernel_size: expected an odd number, got 20"),
        ({"kernel_size": 0}, ValueError, "kernel_size: expected an integer >= 1, got 0"),
        ({"contrast_first": [True]}, ValueError, r"contrast_first: expected one for each of brightness, .*\[1\]"),
    ],
)
def test_a_wrong_record_is_named(change, error, message):
    right = {"brightness": [1.0] * 2, "contrast": [1.0] * 2, "sigma": [1.0] * 2}
    with pytest.raises(error, match=f"^{message}$"):
        BlurJitterParams.of(**right | change)


def test_parts_of_other_radius_go_together():
    with pytest.raises(ValueError, match=r"^parts: expected at least one, got none$"):
        BlurJitterParams.cat([])
    images, both = batch(3, 11, 12)[0], BlurJitterParams.cat([PARAMS, BlurJitterParams.identity(1)])
    out = F.blur_jitter(images, both)
    assert torch.equal(out[:2], F.blur_jitter(images[:2], PARAMS))
    assert torch.equal(out[2], images[2])


def test_shapes_are_checked_under_the_compiler_too():
    images, *records = (x.to("meta") for x in batch(4))
    with pytest.raises(
        ValueError, match=r"blur_jitter: expected \[B, H, W, 3\], \[B, 2\], \[B\] and \[B, R \+ 1\], got"
    ):
        blur_jitter(images, records[0][:1], *records[1:])
    with pytest.raises(ValueError, match="blur_jitter: expected images of more than 10 rows and columns, got"):
        blur_jitter(images[:, :10], *records)


def test_the_binding_refuses_what_does_not_fit():
    images, factors, first, taps = batch(2)
    out = torch.empty_like(images)
    with pytest.raises(ValueError, match="taps: expected a radius below height and width"):
        _C.blur_jitter(images[:, :9].contiguous(), factors, first, taps, out[:, :9].contiguous(), 1)
    for wrong in (taps + 1, torch.cat((taps[:, :9], -taps[:, 9:] - 1), 1)):
        with pytest.raises(ValueError, match=r"taps\[0\]: expected numbers from 0 on that sum to 2\^22"):
            _C.blur_jitter(images, factors, first, wrong.contiguous(), out, 1)
