import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.percentile_mask import percentile_mask, softmax_confidence
from vifast.testing import assert_close_to_oracle, check_op


def table(backend, *values):
    return torch.tensor(values, device=backend.device)


@pytest.mark.parametrize(
    ("values", "q", "keep", "wanted"),
    [
        ((0.1, 0.4, 0.2, 0.3), 50, "high", (0, 1, 0, 1)),
        ((0.1, 0.4, 0.2, 0.3), 50, "low", (1, 0, 1, 0)),
        ((0.1, 0.2, 0.3), 50, "high", (0, 1, 1)),
        ((0.1, 0.2, 0.3), 50, "low", (1, 1, 0)),
        ((0.2, 0.2, 0.2, 0.2), 50, "high", (1, 1, 1, 1)),
        ((0.2, 0.2, 0.2, 0.9), 50, "low", (1, 1, 1, 0)),
        ((0.3, 0.1, 0.2), 0, "high", (1, 1, 1)),
        ((0.3, 0.1, 0.2), 100, "high", (1, 0, 0)),
        ((0.3, 0.1, 0.2), 0, "low", (0, 1, 0)),
        ((0.7,), 50, "high", (1,)),
        ((0.1, float("nan"), 0.2, 0.3), 50, "high", (0, 0, 1, 1)),
        ((float("nan"), float("nan")), 50, "low", (0, 0)),
        ((), 50, "high", ()),
    ],
)
def test_small_tables(backend, values, q, keep, wanted):
    assert F.percentile_mask(table(backend, *values), q, keep=keep).tolist() == list(wanted)


@pytest.mark.parametrize("n", [2, 33, 64, 130, 1025])
@pytest.mark.parametrize("q", [0, 10, 37.5, 50, 90, 100])
def test_percentile_is_that_of_numpy(backend, n, q):
    confidence = torch.rand(n)
    theta = np.percentile(confidence.double().numpy(), q)
    for keep, wanted in (("high", confidence.double() >= theta), ("low", confidence.double() <= theta)):
        actual = F.percentile_mask(confidence.to(backend.device), q, keep=keep).cpu()
        assert_close(actual, wanted.float())


@pytest.mark.parametrize(("n", "c"), [(0, 4), (3, 1), (6, 33), (4, 395), (2, 2049)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_confidence(backend, n, c, scale):
    logits = scale * torch.randn(n, c)
    oracle = logits.double().softmax(1).amax(1)
    assert_close_to_oracle(F.softmax_confidence(logits.to(backend.device)), oracle, length=c)


def test_confidence_at_the_edges(backend):
    assert F.softmax_confidence(torch.zeros(2, 0, device=backend.device)).tolist() == [0, 0]
    logits = torch.randn(4, 5, device=backend.device)
    logits[1, 2], logits[2, 0], logits[3, 1] = torch.nan, torch.inf, -torch.inf
    assert F.softmax_confidence(logits).isnan().tolist() == [False, True, True, False]


def test_ops():
    check_op(softmax_confidence, lambda n: (torch.randn(n, 7),), length=7, outputs=1)
    check_op(percentile_mask, lambda n: (torch.rand(n), 50.0, True), length=1, outputs=1)


def test_neither_has_a_gradient():
    logits = torch.randn(4, 5, requires_grad=True, dtype=torch.float64)
    for x in (logits, logits.float()):
        confidence = F.softmax_confidence(x)
        assert not confidence.requires_grad
        assert not F.percentile_mask(x[:, 0]).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_strides(backend, dtype):
    logits = torch.randn(10, 12, dtype=dtype, device=backend.device)[::2, ::3]
    wide = torch.promote_types(dtype, torch.float32)
    assert_close(F.softmax_confidence(logits), logits.to(wide).softmax(1).amax(1))
    confidence = logits[:, 1]
    assert F.percentile_mask(confidence).dtype == dtype
    assert_close(F.percentile_mask(confidence).float(), F.percentile_mask(confidence.float()))
