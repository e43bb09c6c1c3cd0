"""SymmetricKLLoss and StandardizedKLLoss are their functions."""

import pytest
import torch

from vifast import functional as F
from vifast.losses import StandardizedKLLoss, SymmetricKLLoss

A, B = torch.randn(2, 6, 9)


@pytest.mark.parametrize("block", [None, 1, 3, 6])
def test_symmetric_kl_is_its_function(block):
    assert torch.equal(SymmetricKLLoss(block=block)(A, B), F.symmetric_kl(A, B, block=block))


@pytest.mark.parametrize(
    "options", [{}, {"weights": (1, 2, 3, 4, 5)}, {"reduction": "none"}, {"standardize": "none", "ddof": 0, "eps": 0}]
)
def test_standardized_kl_is_its_function(options):
    keep = torch.rand(6)
    wanted = F.standardized_kl(A, B, (2, 3, 4, 5, 6), keep=keep, **options)
    assert torch.equal(StandardizedKLLoss(**options)(A, B, keep), wanted)


def test_they_hold_no_state_and_show_their_options():
    assert repr(SymmetricKLLoss(block=5)) == "SymmetricKLLoss(block=5)"
    text = "StandardizedKLLoss(temperatures=(4.0,), standardize='zscore', reduction='mean')"
    assert repr(StandardizedKLLoss([4])) == text
    assert not SymmetricKLLoss().state_dict()
    assert not StandardizedKLLoss().state_dict()


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (SymmetricKLLoss, {"block": 0}, ValueError, "block: expected an integer >= 1, got 0"),
        (SymmetricKLLoss, {"block": 2.0}, TypeError, "block: expected an integer, got float"),
        (StandardizedKLLoss, {"temperatures": ()}, ValueError, "temperatures: expected at least one number, got 0"),
        (
            StandardizedKLLoss,
            {"temperatures": (2, -1)},
            ValueError,
            r"temperatures\[1\]: expected a number above 0, got -1",
        ),
        (StandardizedKLLoss, {"weights": (1,)}, ValueError, "weights: expected 5 numbers, got 1"),
        (StandardizedKLLoss, {"reduction": "max"}, ValueError, "reduction: expected one of mean, .*, got 'max'"),
        (StandardizedKLLoss, {"standardize": "l2"}, ValueError, "standardize: expected one of zscore, none, got 'l2'"),
        (StandardizedKLLoss, {"ddof": 2}, ValueError, "ddof: expected one of 0, 1, got 2"),
        (StandardizedKLLoss, {"eps": -1}, ValueError, "eps: expected at least 0, got -1"),
    ],
)
def test_a_wrong_option_is_named(module, options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        module(**options)
