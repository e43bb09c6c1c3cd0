"""What each loss asks of a GPU for a small batch: launches forward and backward, of our kernels and of PyTorch's.

A change that lowers a number writes it here; none may raise one.
"""

import pytest
import torch

from vifast import functional as F
from vifast.kernels._registry import forced
from vifast.kernels._small import counters
from vifast.nn import ModalityPrompts
from vifast.testing import Launches, features

pytestmark = pytest.mark.triton

ROWS, WIDTH = 32, 40
TABLE = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(2))
KEEP = torch.ones(ROWS)
MEMORY = torch.zeros(2, 8, WIDTH)
IMAGES = {"augment", "AugmentParams", "blur_jitter", "BlurJitterParams"}

# Of two sets of ROWS features, or as many as the name says, their labels, and the modality of the first.
CALLS = {
    "pairwise_distance": (1, 18, lambda a, b, labels, modality: F.pairwise_distance(a)),
    "hard_pairs": (1, 1, lambda a, b, labels, modality: F.hard_pairs(a, labels)[2]),
    "triplet_loss": (1, 1, lambda a, b, labels, modality: F.triplet_loss(a, labels)),
    "triplet_loss, 128": (1, 1, lambda a, b, labels, modality: F.triplet_loss(a, labels)),
    "triplet_loss, reference": (
        1,
        1,
        lambda a, b, labels, modality: F.triplet_loss(a, labels, reference=b, reference_labels=labels),
    ),
    "triplet_loss, cosine": (2, 2, lambda a, b, labels, modality: F.triplet_loss(a, labels, metric="cosine")),
    "weighted_triplet_loss": (1, 1, lambda a, b, labels, modality: F.weighted_triplet_loss(a, labels)),
    "weighted_triplet_loss, 128": (1, 1, lambda a, b, labels, modality: F.weighted_triplet_loss(a, labels)),
    "center_triplet_loss": (1, 1, lambda a, b, labels, modality: F.center_triplet_loss(a, b, labels)),
    "center_triplet_loss, 128": (1, 1, lambda a, b, labels, modality: F.center_triplet_loss(a, b, labels)),
    "graph_alignment": (1, 1, lambda a, b, labels, modality: F.graph_alignment(a, b)),
    "graph_alignment, 128": (1, 1, lambda a, b, labels, modality: F.graph_alignment(a, b)),
    "relation_alignment": (1, 1, lambda a, b, labels, modality: F.relation_alignment(a, b)),
    "relation_alignment, keep": (1, 1, lambda a, b, labels, modality: F.relation_alignment(a, b, keep=KEEP)),
    "relation_alignment, 128": (1, 1, lambda a, b, labels, modality: F.relation_alignment(a, b)),
    "prototype_alignment": (1, 1, lambda a, b, labels, modality: F.prototype_alignment(a, b, TABLE)),
    "prototype_alignment, 64": (2, 2, lambda a, b, labels, modality: F.prototype_alignment(a, b, TABLE)),
    "symmetric_kl": (2, 2, lambda a, b, labels, modality: F.symmetric_kl(a, b)),
    "symmetric_kl, block": (2, 2, lambda a, b, labels, modality: F.symmetric_kl(a, b, block=16)),
    "standardized_kl": (2, 2, lambda a, b, labels, modality: F.standardized_kl(a, b, (2.0, 3.0), keep=KEEP)),
    "entropy_hinge": (2, 2, lambda a, b, labels, modality: F.entropy_hinge(a, b)),
    "center_hinge": (1, 1, F.center_hinge),
    "class_centers": (1, 1, lambda a, b, labels, modality: F.class_centers(a, labels, 8)[0]),
    "memory_update_": (1, 0, lambda a, b, labels, modality: F.memory_update_(MEMORY, a[None], labels)),
    "center_loss": (1, 1, lambda a, b, labels, modality: F.center_loss(a, labels, b.detach())),
    "center_cluster_loss": (1, 1, lambda a, b, labels, modality: F.center_cluster_loss(a, labels, margin=9.0)),
    "center_cluster_loss, 128": (1, 1, lambda a, b, labels, modality: F.center_cluster_loss(a, labels, margin=9.0)),
    "neighbor_loss": (1, 1, lambda a, b, labels, modality: F.neighbor_loss(a, labels)),
    "neighbor_loss, 128": (1, 1, lambda a, b, labels, modality: F.neighbor_loss(a, labels)),
    "neighbor_loss, cosine": (2, 2, lambda a, b, labels, modality: F.neighbor_loss(a, labels, metric="cosine")),
    "neighbor_loss, reference": (
        1,
        1,
        lambda a, b, labels, modality: F.neighbor_loss(a, labels, reference=b, reference_labels=labels),
    ),
    "neighbor_loss, cosine to a reference": (
        2,
        2,
        lambda a, b, labels, modality: F.neighbor_loss(
            a, labels, reference=b, reference_labels=labels, metric="cosine", temperature=0.1
        ),
    ),
    "decoupled_kl": (1, 1, lambda a, b, labels, modality: F.decoupled_kl(a, b, labels)),
    "percentile_mask": (1, 0, lambda a, b, labels, modality: F.percentile_mask(a.detach()[:, 0])),
    "softmax_confidence": (1, 0, lambda a, b, labels, modality: F.softmax_confidence(a)),
    "prompt_consistency": (2, 1, lambda a, b, labels, modality: F.prompt_consistency(a, b)),
    "gem_pool": (1, 1, lambda a, b, labels, modality: F.gem_pool(a.reshape(2, 16, 8, 5))),
}


def launches(name):
    *_, call = CALLS[name]
    said = name.split(", ")[-1]
    rows = int(said) if said.isdigit() else ROWS
    (a, labels), (b, _) = (features(rows, WIDTH, num_instances=8, seed=seed) for seed in (0, 1))
    leaves = a.requires_grad_(), b.requires_grad_()
    modality = torch.arange(rows) % 2
    zeros = counters(a)  # made once a stream
    with forced("cuda"):
        with Launches() as forward:
            loss = call(*leaves, labels, modality)
        upstream = torch.ones_like(loss)
        with Launches() as backward:
            if loss.requires_grad:
                torch.autograd.grad(loss, leaves, upstream, allow_unused=True)
    assert not zeros.any(), "the last program of a launch leaves its counter 0"
    return forward, backward


@pytest.mark.parametrize("name", CALLS)
def test_launches(name):
    forward, backward = launches(name)
    counted = f"forward {dict(forward.count)}, backward {dict(backward.count)}"
    assert (forward.total, backward.total) == CALLS[name][:2], counted


def test_launches_of_prompts():
    """The parameters of both modalities and the common ones are put together by PyTorch, and a seed is drawn."""
    module, images = ModalityPrompts(), torch.randn(3, 3, 32, 32)
    zeros = counters(images)
    with forced("cuda"):
        with Launches() as forward:
            out = module(images, torch.tensor([0, 1, 1]))
        upstream = [torch.ones_like(x) for x in out]
        with Launches() as backward:
            torch.autograd.grad(out, list(module.parameters()), upstream)
    assert not zeros.any()
    counted = f"forward {dict(forward.count)}, backward {dict(backward.count)}"
    assert (forward.total, backward.total) == (11, 7), counted


def test_every_function_is_counted():
    assert {name.split(",")[0] for name in CALLS} == set(F.__all__) - {"check_finite"} - IMAGES
