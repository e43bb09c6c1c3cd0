import pytest
import torch

from vifast import functional as F
from vifast.losses import TripletLoss, WeightedTripletLoss

FEAT = torch.randn(8, 5)
LABELS = torch.arange(8) // 2


@pytest.mark.parametrize(
    "options",
    [{}, {"margin": 1.3}, {"margin": None}, {"metric": "cosine", "reduction": "none"}, {"precision": "fast"}],
)
def test_triplet_is_its_function(options):
    assert torch.equal(TripletLoss(**options)(FEAT, LABELS), F.triplet_loss(FEAT, LABELS, **options))


def test_triplet_with_a_reference_set():
    loss = TripletLoss()(FEAT, LABELS, FEAT.flip(0), LABELS.flip(0))
    wanted = F.triplet_loss(FEAT, LABELS, reference=FEAT.flip(0), reference_labels=LABELS.flip(0))
    assert torch.equal(loss, wanted)


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"stable": True, "reduction": "sum"}])
def test_weighted_is_its_function(options):
    assert torch.equal(WeightedTripletLoss(**options)(FEAT, LABELS), F.weighted_triplet_loss(FEAT, LABELS, **options))


def test_they_hold_no_state_and_show_their_options():
    assert repr(TripletLoss(margin=None)) == "TripletLoss(margin=None, metric='euclidean', reduction='mean')"
    assert repr(WeightedTripletLoss()) == "WeightedTripletLoss(normalize=False, stable=False, reduction='mean')"
    assert not TripletLoss().state_dict()
    assert not WeightedTripletLoss().state_dict()


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (TripletLoss, {"margin": -1}, ValueError, "margin: expected at least 0, got -1"),
        (TripletLoss, {"margin": "0.3"}, TypeError, "margin: expected a number, got str"),
        (TripletLoss, {"metric": "l2"}, ValueError, "metric: expected one of euclidean, .*, got 'l2'"),
        (TripletLoss, {"reduction": "max"}, ValueError, "reduction: expected one of mean, sum, none, got 'max'"),
        (TripletLoss, {"precision": "low"}, ValueError, "precision: expected one of exact, fast, got 'low'"),
        (WeightedTripletLoss, {"reduction": "max"}, ValueError, "reduction: expected one of mean, .*, got 'max'"),
        (WeightedTripletLoss, {"precision": "low"}, ValueError, "precision: expected one of exact, fast, got 'low'"),
    ],
)
def test_a_wrong_option_is_named(module, options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        module(**options)
