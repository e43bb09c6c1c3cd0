"""No op reads from the device while it runs: on a GPU every such read stops the host until the device is done."""

import pytest
import torch

import vifast
from vifast import functional as F
from vifast.losses import CKDALoss
from vifast.systems.mce import MCEObjective
from vifast.testing import features

ROWS, WIDTH = 12, 10
TABLE = torch.randn(5, WIDTH)


def _inputs():
    feat, labels = features(ROWS, WIDTH, num_instances=4)
    other = feat.flip(1) + 0.1
    return feat.requires_grad_(), other.requires_grad_(), labels, torch.arange(ROWS) % 2


CALLS = {
    "pairwise_distance": lambda a, b, labels, modality: F.pairwise_distance(a, b),
    "hard_pairs": lambda a, b, labels, modality: F.hard_pairs(a, labels)[2],
    "triplet_loss": lambda a, b, labels, modality: F.triplet_loss(a, labels, reference=b, reference_labels=labels),
    "weighted_triplet_loss": lambda a, b, labels, modality: F.weighted_triplet_loss(a, labels),
    "symmetric_kl": lambda a, b, labels, modality: F.symmetric_kl(a, b) + F.symmetric_kl(a, b, block=3),
    "entropy_hinge": lambda a, b, labels, modality: F.entropy_hinge(a, b),
    "standardized_kl": lambda a, b, labels, modality: F.standardized_kl(
        a, b, (2.0, 3.0, 4.0, 5.0, 6.0), keep=F.percentile_mask(b.detach()[:, 0])
    ),
    "graph_alignment": lambda a, b, labels, modality: F.graph_alignment(a, b),
    "relation_alignment": lambda a, b, labels, modality: F.relation_alignment(a, b),
    "prototype_alignment": lambda a, b, labels, modality: F.prototype_alignment(a, b, b.detach()[:5]),
    "class_centers": lambda a, b, labels, modality: F.class_centers(a, labels, 4)[0],
    "center_hinge": lambda *args: F.center_hinge(*args),  # noqa: PLW0108 - looked up when called
    "center_loss": lambda a, b, labels, modality: F.center_loss(a, labels, b.detach()),
    "center_cluster_loss": lambda a, b, labels, modality: F.center_cluster_loss(a, labels, margin=9.0),
    "decoupled_kl": lambda a, b, labels, modality: F.decoupled_kl(a, b, labels),
    "neighbor_loss": lambda a, b, labels, modality: F.neighbor_loss(a, labels),
    "center_triplet_loss": lambda a, b, labels, modality: F.center_triplet_loss(a, b, labels),
    "prompt_consistency": lambda a, b, labels, modality: F.prompt_consistency(a, b),
    "softmax_confidence": lambda a, b, labels, modality: F.softmax_confidence(a) + F.symmetric_kl(a, b),
    "ckda": lambda a, b, labels, modality: CKDALoss()(
        a, b, a, b, labels, teacher_v=b.detach(), teacher_i=a.detach(), prototypes_v=TABLE, prototypes_i=TABLE
    )["loss"],
    "mce": lambda a, b, labels, modality: MCEObjective(5, WIDTH)(torch.stack((a, b, a)), labels)["loss"],
    "gem_pool": lambda a, b, labels, modality: F.gem_pool(a.reshape(2, 3, 4, 5)),
}


#: No gradient; and records of images, which are drawn on the host and checked there.
OTHERS = {
    "check_finite",
    "percentile_mask",
    "memory_update_",
    "augment",
    "AugmentParams",
    "blur_jitter",
    "BlurJitterParams",
}


def test_every_function_is_called():
    assert set(CALLS) - {"ckda", "mce"} == set(F.__all__) - OTHERS


@pytest.mark.parametrize("path", ["kernels", "definition"])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_read_from_the_device(name, path, no_host_reads):
    a, b, labels, modality = _inputs()
    if path == "definition":
        with vifast.use_reference():
            CALLS[name](a, b, labels, modality).sum().backward()
    else:
        CALLS[name](a, b, labels, modality).sum().backward()
    assert a.grad is not None
