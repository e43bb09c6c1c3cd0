import pytest
import torch
from torch.testing import assert_close

import vifast
from vifast import functional as F
from vifast.functional.augment import DTYPES, IMAGENET_MEAN, IMAGENET_STD, AugmentParams
from vifast.kernels.augment import ERASED, GRAY, LIMITS, LUMINANCE, NORMALIZED, ONE, RAW, augment

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # leaves 0..255 as they are
BOXES = ("mix", "color", "erase")
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
both_layouts = pytest.mark.parametrize("channels_last", [False, True])


def images(n, h, w, seed=0):
    return torch.randint(0, 256, (n, h, w, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def params(n=1, constants=PLAIN, **columns):
    """Records of zeros with some columns; a box is given as (top, left, height, width)."""
    made = AugmentParams(AugmentParams.identity(n).records, **constants)
    for name, value in columns.items():
        if name in BOXES:
            first = made.COLUMNS.index(f"{name}_top")
            made.records[:, first : first + 4] = torch.tensor(value, dtype=torch.int32)
        else:
            made.column(name)[:] = torch.tensor(value, dtype=torch.int32)
    return made


def random_params(n, h, w, seed=0):
    """Every column anywhere in its range; half of the crops near, as they are in use."""
    generator = torch.Generator().manual_seed(seed)

    def within(low, high):
        return low + (torch.rand(n, generator=generator) * (high - low + 1)).floor().int()

    zero = torch.zeros(n, dtype=torch.int32)
    made = AugmentParams(AugmentParams.identity(n).records, fill=(0.3, -0.2, 0.7), pad=127)
    for name, size in (("dy", h), ("dx", w)):
        near = within(zero, 1) == 1
        made.column(name)[:] = torch.where(near, within(zero - min(2, size), min(2, size)), within(zero - size, size))
    for name, most in LIMITS.items():
        made.column(name)[:] = within(zero, most)
    for box in BOXES:
        for start, length, size in (("top", "height", h), ("left", "width", w)):
            made.column(f"{box}_{start}")[:] = begin = within(zero, size)
            made.column(f"{box}_{length}")[:] = within(zero, size - begin)
    made.column("partner")[:] = within(zero, n - 1) - torch.arange(n)
    return made


def by_definition(*args, **kwargs):
    with vifast.use_reference():
        return F.augment(*args, **kwargs)


def shown(image, backend, **columns):
    """One image, given as nested lists [H][W][3], in the same form after its steps."""
    constants = {name: columns.pop(name) for name in ("fill", "pad") if name in columns}
    made = params(1, PLAIN | constants, **columns).to(backend.device)
    image = torch.tensor([image], dtype=torch.uint8, device=backend.device)
    return F.augment(image, made)[0].permute(1, 2, 0).tolist()


A, B, C, D = [1, 2, 3], [10, 20, 30], [100, 110, 120], [200, 210, 220]
P, FILL = [7, 7, 7], [-1.0, -2.0, -3.0]


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({}, [[A, B], [C, D]]),
        ({"flip": 1}, [[B, A], [D, C]]),
        ({"dy": 1}, [[C, D], [P, P]]),
        ({"dy": -1, "dx": 1}, [[P, P], [B, P]]),
        ({"dx": 1, "flip": 1}, [[P, B], [P, D]]),
        ({"dy": 2}, [[P, P], [P, P]]),
        ({"erase": (0, 1, 2, 1)}, [[A, FILL], [C, FILL]]),
        ({"erase": (1, 0, 1, 0)}, [[A, B], [C, D]]),
        ({"red": 1, "green": 1, "blue": 1, "color": (0, 0, 1, 2)}, [[[2] * 3, [20] * 3], [C, D]]),
        ({"red": 2, "green": 0, "blue": 1, "color": (1, 1, 1, 1)}, [[A, B], [C, [220, 200, 210]]]),
        ({"green": 1, "blue": 2, "color": (0, 0, 2, 2)}, [[A, B], [C, D]]),
        ({"outside": 1, "color": (1, 0, 1, 2)}, [[[1] * 3, [10] * 3], [C, D]]),
        ({"outside": 1}, [[[1] * 3, [10] * 3], [[100] * 3, [200] * 3]]),
        (
            {"red": 2, "green": 2, "blue": 2, "stage": NORMALIZED, "color": (0, 0, 1, 2), "erase": (0, 0, 2, 1)},
            [[FILL, [30] * 3], [FILL, D]],
        ),
        (
            {"red": 2, "green": 2, "blue": 2, "stage": ERASED, "color": (0, 0, 1, 2), "erase": (0, 0, 2, 1)},
            [[[-3.0] * 3, [30] * 3], [FILL, D]],
        ),
    ],
)
def test_four_pixels_done_by_hand(backend, columns, wanted):
    assert shown([[A, B], [C, D]], backend, pad=7, fill=tuple(FILL), **columns) == wanted


@pytest.mark.parametrize("stage", [RAW, NORMALIZED, ERASED])
def test_luminance_by_hand(backend, stage):
    gray = {"red": GRAY, "green": GRAY, "blue": GRAY, "stage": stage, "color": (0, 0, 1, 2), "erase": (0, 1, 1, 1)}
    left, right = shown([[A, B]], backend, fill=tuple(FILL), **gray)[0]
    assert_close(left, [0.2989 * 1 + 0.5870 * 2 + 0.1140 * 3] * 3, rtol=1e-6, atol=0)
    erased = [-0.2989 - 2 * 0.5870 - 3 * 0.1140] * 3 if stage == ERASED else FILL
    assert_close(right, erased, rtol=1e-6, atol=0)


def test_stage_decides_whose_mean_applies(backend):
    image = torch.tensor([[[A, B]]], dtype=torch.uint8, device=backend.device)
    for stage in (RAW, NORMALIZED):
        made = params(1, {}, red=2, green=2, blue=2, stage=stage, color=(0, 0, 1, 2))
        got = F.augment(image, made.to(backend.device))[0, :, 0].T.tolist()
        for value, pixel in zip((3, 30), got, strict=True):
            unit = range(3) if stage == RAW else [2] * 3
            wanted = [(value / 255 - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in unit]
            assert_close(pixel, wanted, rtol=1e-5, atol=1e-6)


def test_a_partner_is_seen_through_its_own_window(backend):
    pair = torch.tensor([[[A, B]], [[C, D]]], dtype=torch.uint8, device=backend.device)
    paste = params(2, partner=[1, -1], weight=[0, 16384], mix=[(0, 0, 1, 1), (0, 0, 1, 2)], flip=[0, 1])
    first, second = F.augment(pair, paste.to(backend.device))[:, :, 0].transpose(1, 2).tolist()
    assert first == [D, B]  # the partner is flipped
    assert second == [[0.25 * d + 0.75 * a for d, a in zip(D, A, strict=True)],
                      [0.25 * c + 0.75 * b for c, b in zip(C, B, strict=True)]]  # fmt: skip


def test_mixing_comes_before_color_and_color_before_erase(backend):
    pair = torch.tensor([[[A, A]], [[D, D]]], dtype=torch.uint8, device=backend.device)
    steps = params(2, PLAIN | {"fill": FILL}, partner=[1, 0], mix=[(0, 0, 1, 2)] * 2, weight=[0, ONE],
                   red=2, green=2, blue=2, stage=NORMALIZED, color=(0, 0, 1, 2), erase=(0, 1, 1, 1))  # fmt: skip
    assert F.augment(pair, steps.to(backend.device))[0, :, 0].T.tolist() == [[220.0] * 3, FILL]


def test_near_the_two_steps_of_torchvision(backend):
    """Half an ulp of scale, 255 times, of shift, and of the result, are 4.8e-7 at most."""
    values = torch.arange(256, dtype=torch.uint8, device=backend.device)
    ours = F.augment(values[None, :, None, None].expand(1, 256, 1, 3), AugmentParams.identity(1, device=backend.device))
    mean, std = (torch.tensor(v, device=backend.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    theirs = ((values.float() / 255)[None, :, None] - mean) / std
    assert (ours[0] - theirs).abs().max() < 6e-7
    exact = ((values.double() / 255)[None, :, None] - mean.double()) / std.double()
    assert (ours[0].double() - exact).abs().max() < 4.8e-7


@every_dtype
@both_layouts
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 5, 3), (6, 12, 37), (5, 4, 128), (3, 7, 70)])
def test_equal_bits_as_the_definition(backend, dtype, channels_last, shape):
    batch, made = images(*shape).to(backend.device), random_params(*shape).to(backend.device)
    ours = F.augment(batch, made, dtype=dtype, channels_last=channels_last)
    wanted = by_definition(batch.cpu(), made.to("cpu"), dtype=dtype, channels_last=channels_last)
    assert ours.dtype == dtype
    assert ours.stride() == wanted.stride()
    assert torch.equal(ours.cpu(), wanted)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert ours.is_contiguous(memory_format=layout)


@pytest.mark.slow
@every_dtype
@both_layouts
def test_equal_bits_past_the_caches(dtype, channels_last, with_threads):
    """More than 8 MiB are stored past the caches."""
    batch, made = images(24, 384, 124), random_params(24, 384, 124)
    wanted = by_definition(batch, made, dtype=dtype, channels_last=channels_last)
    for threads in (1, 2):
        with_threads(threads)
        assert torch.equal(F.augment(batch, made, dtype=dtype, channels_last=channels_last), wanted)


@every_dtype
@both_layouts
def test_every_instruction_set(isa, dtype, channels_last):
    batch, made = images(12, 9, 43), random_params(12, 9, 43)
    ours = F.augment(batch, made, dtype=dtype, channels_last=channels_last)
    assert torch.equal(ours, by_definition(batch, made, dtype=dtype, channels_last=channels_last))


def test_bits_do_not_depend_on_threads(with_threads):
    batch, made = images(16, 96, 48), random_params(16, 96, 48)
    results = []
    for threads in (1, 2, 3):
        with_threads(threads)
        results.append(F.augment(batch, made))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_records_out_of_range_are_clamped_by_the_op(backend):
    """What the functional call refuses on the CPU; on a GPU nobody looks."""
    n, h, w = 40, 6, 5
    wild = torch.randint(-9, 10, (n, len(AugmentParams.COLUMNS)), dtype=torch.int32)
    wild[::3] *= 2**27
    args = ([0.5] * 3, [0.2] * 3, [0.1, 0.2, 0.3], 9, torch.float32, False)
    ours = augment(images(n, h, w).to(backend.device), wild.to(backend.device), *args).cpu()
    assert torch.equal(ours, augment.definition(images(n, h, w), wild, *args))


def test_strides_of_images_and_slices_of_records(backend):
    batch, made = images(8, 6, 5).to(backend.device), random_params(8, 6, 5).to(backend.device)
    made.column("partner")[:] = 0
    whole = F.augment(batch, made)
    assert torch.equal(F.augment(batch.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3), made), whole)
    parts = [F.augment(batch[:3], made[:3]), F.augment(batch[3:], made[3:])]
    assert torch.equal(torch.cat(parts), whole)
    again = AugmentParams.cat([made[:3], made[3:]])
    assert torch.equal(again.records, made.records)
    assert again.fill == made.fill


def test_no_images(backend):
    batch = torch.zeros(0, 4, 3, 3, dtype=torch.uint8, device=backend.device)
    assert F.augment(batch, AugmentParams.identity(0, device=backend.device)).shape == (0, 3, 4, 3)


def test_inputs_are_not_written(backend):
    batch, made = images(5, 6, 4).to(backend.device), random_params(5, 6, 4).to(backend.device)
    kept = batch.clone(), made.records.clone()
    F.augment(batch, made)
    assert torch.equal(batch, kept[0])
    assert torch.equal(made.records, kept[1])


@every_dtype
@both_layouts
def test_op(dtype, channels_last):
    made = random_params(3, 5, 4)
    args = (list(made.mean), list(made.std), list(made.fill), made.pad, dtype, channels_last)
    torch.library.opcheck(augment.overload, (images(3, 5, 4), made.records, *args))


def test_one_graph_for_two_batch_sizes():
    def step(batch, records):
        return F.augment(batch, AugmentParams(records, pad=3), dtype=torch.bfloat16)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for n in (4, 7):
        batch, records = images(n, 6, 5), random_params(n, 6, 5).records
        assert torch.equal(compiled(batch, records), step(batch, records))


IMAGES, RECORDS = images(2, 4, 3), AugmentParams.identity(2)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (([1], RECORDS), {}, TypeError, r"images: expected a tensor \[B, H, W, 3\], got list"),
        ((IMAGES.int(), RECORDS), {}, TypeError, r"images: expected torch.uint8, got torch.int32"),
        ((IMAGES[0], RECORDS), {}, ValueError, r"images: .* of at least one pixel, got shape \[4, 3, 3\]"),
        ((IMAGES[..., :2], RECORDS), {}, ValueError, r"images: .*, got shape \[2, 4, 3, 2\]"),
        ((IMAGES[:, :0], RECORDS), {}, ValueError, r"images: .* of at least one pixel, got shape \[2, 0, 3, 3\]"),
        ((IMAGES, RECORDS.records), {}, TypeError, "params: expected AugmentParams, got Tensor"),
        ((IMAGES, RECORDS[:1]), {}, ValueError, r"records: expected shape \[2, 22\], got \[1, 22\]"),
        ((IMAGES, AugmentParams(RECORDS.records.long())), {}, TypeError, "records: expected torch.int32, got .*int64"),
        ((IMAGES, RECORDS.to("meta")), {}, ValueError, "records: expected device cpu as images, got meta"),
        ((IMAGES, RECORDS), {"dtype": torch.float64}, TypeError, "dtype: expected one of .*, got torch.float64"),
        (
            (IMAGES, AugmentParams(RECORDS.records, std=(1, 0, 1))),
            {},
            ValueError,
            r"std\[1\]: expected .* above 0, got 0",
        ),
        ((IMAGES, AugmentParams(RECORDS.records, mean=(1, 2))), {}, ValueError, "mean: expected 3 numbers, got 2"),
        ((IMAGES, AugmentParams(RECORDS.records, pad=256)), {}, ValueError, "pad: expected 0 to 255, got 256"),
        ((IMAGES, AugmentParams(RECORDS.records, pad=0.5)), {}, TypeError, "pad: expected an integer, got float"),
    ],
)
def test_a_wrong_argument_is_named(args, kwargs, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        F.augment(*args, **kwargs)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"dy": [0, 5]}, r"records\[1\].dy: expected -4 to 4, got 5"),
        ({"dx": -4}, r"records\[0\].dx: expected -3 to 3, got -4"),
        ({"flip": 2}, r"records\[0\].flip: expected 0 to 1, got 2"),
        ({"weight": ONE + 1}, r"records\[0\].weight: expected 0 to 65536, got 65537"),
        ({"blue": [3, 4]}, r"records\[1\].blue: expected 0 to 3, got 4"),
        ({"stage": 3}, r"records\[0\].stage: expected 0 to 2, got 3"),
        ({"mix": (0, 0, 5, 1)}, r"records\[0\].mix_height: expected 0 to 4, got 5"),
        ({"color": (3, 0, 2, 1)}, r"records\[0\].color_height: expected a box that ends within 4 pixels, got 2"),
        ({"erase": (0, 1, 1, 3)}, r"records\[0\].erase_width: expected a box that ends within 3 pixels, got 3"),
        ({"erase": (0, -1, 1, 1)}, r"records\[0\].erase_left: expected 0 to 3, got -1"),
        ({"partner": [1, 1]}, r"records\[1\].partner: expected an image of the batch of 2, got 1"),
        ({"partner": [-1, 0]}, r"records\[0\].partner: expected an image of the batch of 2, got -1"),
    ],
)
def test_a_record_out_of_range_is_named(columns, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        F.augment(IMAGES, params(2, **columns))


def test_parts_must_share_their_constants():
    with pytest.raises(ValueError, match=r"^parts: expected at least one, got none$"):
        AugmentParams.cat([])
    other = AugmentParams(RECORDS.records, pad=3)
    with pytest.raises(ValueError, match=r"^parts\[1\].pad: expected 0 as in parts\[0\], got 3$"):
        AugmentParams.cat([RECORDS, other])


def test_the_op_checks_shapes_under_the_compiler_too():
    args = ([0.0] * 3, [1.0] * 3, [0.0] * 3, 0, torch.float32, False)
    with pytest.raises(ValueError, match=r"augment: expected \[B, H, W, 3\] and \[B, 22\], got \[4, 3, 3\]"):
        augment.overload(IMAGES[0].to("meta"), RECORDS.records.to("meta"), *args)


def test_the_luminance_is_that_of_the_papers():
    assert sum(LUMINANCE) == pytest.approx(0.9999)
