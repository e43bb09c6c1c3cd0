"""A module per loss: hyper-parameters in the constructor, tensors in ``forward``, arithmetic in functional form."""

from vifast.losses.triplet import TripletLoss
from vifast.losses.weighted_triplet import WeightedTripletLoss

__all__ = ["TripletLoss", "WeightedTripletLoss"]
