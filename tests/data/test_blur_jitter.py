import numpy as np
import pytest
import torch

from vifast import functional as F
from vifast.data import Augment
from vifast.data.blur_jitter import BlurJitter
from vifast.functional import AugmentParams, BlurJitterParams
from vifast.kernels.blur_jitter import ONE, gaussian_taps

INDEX = np.arange(20000)
INFRARED, VISIBLE = np.ones(20000, np.int64), np.zeros(20000, np.int64)
KEY = {"seed": 3, "epoch": 5}


def kinds(params):
    """Rows that are jittered, and rows that are blurred."""
    return (params.factors != 1).any(1), params.taps[:, 0] != ONE


def test_ckda_draws_one_of_both_for_infrared_images_alone():
    policy = Augment.preset("ckda").blur_jitter
    params = policy.draw(INDEX, INFRARED, **KEY)
    jittered, blurred = kinds(params)
    assert not (jittered & blurred).any()
    # A deviation below 0.18 leaves the middle tap alone: 2.7 % of the blurs.
    assert 0.97 * 0.5 - 0.015 < blurred.float().mean() < 0.5 + 0.015
    assert abs(jittered.float().mean() - 0.5) < 0.015
    factors = params.factors[jittered]
    assert factors.min() >= torch.tensor(0.7)
    assert factors.max() < 1.3
    assert (factors.mean(0) - 1).abs().max() < 0.01
    assert (factors.var(0) - 0.6**2 / 12).abs().max() < 0.001
    assert abs(np.corrcoef(factors.T.numpy())[0, 1]) < 0.03
    assert abs(params.contrast_first[jittered].float().mean() - 0.5) < 0.02
    least, most = gaussian_taps(torch.tensor([0.1, 3.0]), 10)[:, 0]
    assert params.taps[:, 0].max() <= least
    assert params.taps[:, 0].min() >= most
    for part in kinds(policy.draw(INDEX, VISIBLE, **KEY)):
        assert not part.any()


@pytest.mark.parametrize(("p", "blur"), [(0.0, 0.5), (0.3, 1.0), (1.0, 0.0), (0.6, 0.25)])
def test_shares(p, blur):
    jittered, blurred = kinds(BlurJitter(p=p, blur=blur, sigma=(1.0, 2.0)).draw(INDEX, INFRARED, **KEY))
    assert abs(blurred.float().mean() - p * blur) < 0.012
    assert abs(jittered.float().mean() - p * (1 - blur)) < 0.012


def test_a_sample_draws_the_same_in_any_batch():
    policy, modality = Augment.preset("ckda"), INDEX % 2
    whole = policy.draw(INDEX[:64], modality[:64], (256, 128), **KEY)
    parts = [policy.draw(INDEX[i : i + 16], modality[i : i + 16], (256, 128), **KEY) for i in range(0, 64, 16)]
    for name in ("factors", "contrast_first", "taps"):
        joined = getattr(AugmentParams.cat(parts).blur_jitter, name)
        assert torch.equal(getattr(whole.blur_jitter, name), joined)
        assert torch.equal(getattr(whole[16:32].blur_jitter, name), joined[16:32])
    other = policy.draw(INDEX[:64], modality[:64], (256, 128), seed=3, epoch=6)
    assert not torch.equal(other.blur_jitter.factors, whole.blur_jitter.factors)


def test_it_moves_no_other_draw():
    with_it, without = (Augment.preset("ckda", blur_jitter=BlurJitter(p=p)) for p in (1.0, 0.0))
    one, other = (policy.draw(INDEX[:64], INFRARED[:64], (256, 128), **KEY) for policy in (with_it, without))
    assert torch.equal(one.records, other.records)
    assert other.blur_jitter is None


def test_augment_does_it_first():
    images = torch.randint(0, 256, (8, 24, 12, 3), dtype=torch.uint8)
    params = Augment.preset("ckda").draw(INDEX[:8], INFRARED[:8], (24, 12), **KEY)
    plain = AugmentParams(params.records, fill=params.fill)
    before = F.blur_jitter(images, params.blur_jitter)
    assert not torch.equal(before, images)
    assert torch.equal(F.augment(images, params), F.augment(before, plain))


def test_parts_with_and_without_it_go_together():
    policy = Augment.preset("ckda")
    params = policy.draw(INDEX[:4], INFRARED[:4], (24, 12), **KEY)
    joined = AugmentParams.cat([params, AugmentParams(params.records, fill=params.fill)])
    assert len(joined.blur_jitter) == 8
    identity = BlurJitterParams.identity(4)
    assert torch.equal(joined.blur_jitter.factors[4:], identity.factors)
    assert (joined.blur_jitter.taps[4:, 0] == ONE).all()
    assert joined.to("meta").blur_jitter.taps.device.type == "meta"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"p": 1.5}, "blur_jitter.p: expected 0 to 1, got 1.5"),
        ({"blur": -0.1}, "blur_jitter.blur: expected 0 to 1, got -0.1"),
        ({"brightness": 2.0}, "blur_jitter.brightness: expected 0 to 1, got 2.0"),
        ({"sigma": (3.0, 0.1)}, r"blur_jitter.sigma: expected a rising range, got \(3.0, 0.1\)"),
        ({"sigma": (-1.0, 1.0)}, r"blur_jitter.sigma\[0\]: expected at least 0, got -1.0"),
        ({"kernel_size": 4}, "blur_jitter.kernel_size: expected an odd number, got 4"),
        ({"modalities": ()}, "blur_jitter.modalities: .*"),
    ],
)
def test_a_wrong_option_is_named(values, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        BlurJitter(**values)
