"""The ops in the terms of the field: arguments checked, distances named, losses reduced.

Symbols: ``feat [N, D]`` features (float32, bfloat16, float16; float64 is computed in float64 by the definition),
``labels [N]`` identities of any integer type. Results are float32 (float64 for float64). Nothing synchronises with
the host but :func:`check_finite`.
"""

from vifast.functional._common import METRICS as METRICS
from vifast.functional._common import PRECISIONS as PRECISIONS
from vifast.functional._common import REDUCTIONS as REDUCTIONS
from vifast.functional.augment import AugmentParams, augment
from vifast.functional.blur_jitter import BlurJitterParams, blur_jitter
from vifast.functional.center_cluster import center_cluster_loss
from vifast.functional.center_hinge import center_hinge
from vifast.functional.center_loss import center_loss
from vifast.functional.center_triplet import center_triplet_loss
from vifast.functional.class_centers import class_centers
from vifast.functional.decoupled_kl import decoupled_kl
from vifast.functional.entropy_hinge import entropy_hinge
from vifast.functional.finite import check_finite
from vifast.functional.gem_pool import gem_pool
from vifast.functional.graph_alignment import graph_alignment
from vifast.functional.memory_update import memory_update_
from vifast.functional.neighbor_loss import neighbor_loss
from vifast.functional.pairwise_distance import pairwise_distance
from vifast.functional.percentile_mask import percentile_mask, softmax_confidence
from vifast.functional.prompt_consistency import prompt_consistency
from vifast.functional.prototype_alignment import prototype_alignment
from vifast.functional.relation_alignment import relation_alignment
from vifast.functional.standardized_kl import STANDARDIZE as STANDARDIZE
from vifast.functional.standardized_kl import standardized_kl
from vifast.functional.symmetric_kl import symmetric_kl
from vifast.functional.triplet import hard_pairs, triplet_loss
from vifast.functional.weighted_triplet import weighted_triplet_loss

__all__ = [
    "AugmentParams",
    "BlurJitterParams",
    "augment",
    "blur_jitter",
    "center_cluster_loss",
    "center_hinge",
    "center_loss",
    "center_triplet_loss",
    "check_finite",
    "class_centers",
    "decoupled_kl",
    "entropy_hinge",
    "gem_pool",
    "graph_alignment",
    "hard_pairs",
    "memory_update_",
    "neighbor_loss",
    "pairwise_distance",
    "percentile_mask",
    "prompt_consistency",
    "prototype_alignment",
    "relation_alignment",
    "softmax_confidence",
    "standardized_kl",
    "symmetric_kl",
    "triplet_loss",
    "weighted_triplet_loss",
]
