"""A module per loss: hyper-parameters in the constructor, tensors in ``forward``, arithmetic in functional form."""

from vifast.losses.center import CenterClusterLoss, CenterLoss
from vifast.losses.center_triplet import CenterTripletLoss
from vifast.losses.ckda import CKDALoss
from vifast.losses.dakd import DAKDLoss
from vifast.losses.graph_alignment import GraphAlignmentLoss
from vifast.losses.idkl import IDKLLoss
from vifast.losses.neighbor import NeighborLoss
from vifast.losses.prototype_alignment import PrototypeAlignmentLoss
from vifast.losses.standardized_kl import StandardizedKLLoss
from vifast.losses.symmetric_kl import SymmetricKLLoss
from vifast.losses.triplet import TripletLoss
from vifast.losses.weighted_triplet import WeightedTripletLoss

__all__ = [
    "CKDALoss",
    "CenterClusterLoss",
    "CenterLoss",
    "CenterTripletLoss",
    "DAKDLoss",
    "GraphAlignmentLoss",
    "IDKLLoss",
    "NeighborLoss",
    "PrototypeAlignmentLoss",
    "StandardizedKLLoss",
    "SymmetricKLLoss",
    "TripletLoss",
    "WeightedTripletLoss",
]
