"""The ops of `vifast.bench` against what users have today."""

from functools import partial

import rival_prompts
import rivals
import rivals_images
import torch

from cases._case import Case
from vifast import bench
from vifast.bench.images import drawn_ckda
from vifast.functional import AugmentParams


def _usual(eager, **more):
    """Rivals with the arguments of the op: the usual eager code, compiled too."""

    def rivals_of(*args):
        called = {"eager": eager, "compile": torch.compile(eager)} | more
        if args[0].is_cuda:
            called["max_autotune"] = torch.compile(eager, mode="max-autotune")
        return {name: lambda rival=rival: rival(*args) for name, rival in called.items()}

    return rivals_of


def _triplet(feat, labels):
    pml = rivals.triplet_pml()
    more = {"round_trip": rivals.round_trip, "eager_gather": rivals.triplet_gather, "pml": pml}
    return _usual(rivals.triplet_dense, **more)(feat, labels)


def _info_nce(feat, labels):
    return _usual(rivals.info_nce_dense, pml=rivals.info_nce_pml())(feat, labels)


def _pairwise(feat):
    return {"eager": lambda: rivals.distances(feat), "cdist": lambda: torch.cdist(feat, feat)}


def _augment(images, params, dtype=torch.float32):
    columns = {name: params.column(name) for name in AugmentParams.COLUMNS}
    constants = params.mean, params.std, params.fill

    def eager():
        return rivals_images.augment(images, columns, constants).to(dtype)

    pillow = {"pillow": lambda: rivals_images.augment_pillow(images, columns, constants).to(dtype)}
    return {"eager": eager, "compile": torch.compile(eager)} | (pillow if images.device.type == "cpu" else {})


def _blur_jitter(images, params):
    (brightness, contrast, sigma), (jittered, blurred) = drawn_ckda(len(images))
    args = jittered, blurred, brightness[jittered], contrast[jittered], sigma[blurred]
    on_device, compiled = [x.to(images.device) for x in args], torch.compile(rivals_images.blur_jitter)
    pillow = {"pillow": lambda: rivals_images.blur_jitter_pillow(images, *args)} if images.device.type == "cpu" else {}
    eager = {
        "eager": lambda: rivals_images.blur_jitter(images, *on_device),
        "compile": lambda: compiled(images, *on_device),
    }
    return eager | pillow


RIVALS = {
    "triplet_loss": _triplet,
    "weighted_triplet_loss": _usual(rivals.weighted_dense, round_trip=rivals.round_trip),
    "neighbor_loss": _info_nce,
    "pairwise_distance": _pairwise,
    "graph_alignment": _usual(rivals.graph_alignment),
    "relation_alignment": _usual(rivals.relation_alignment),
    "prototype_alignment": _usual(rivals.prototype_alignment),
    "center_triplet_loss": _usual(rivals.center_triplet),
    "center_cluster_loss": lambda *args: {"eager": lambda: rivals.center_cluster(*args)},
    "center_hinge": _usual(rivals.center_hinge),
    "center_loss": _usual(rivals.center_loss, eager_gather=rivals.center_loss_gather),
    "memory_update": lambda *args: {"eager": lambda: rivals.memory_update(*args)},
    "symmetric_kl": _usual(rivals.symmetric_kl),
    "entropy_hinge": _usual(rivals.entropy_hinge),
    "standardized_kl": _usual(rivals.standardized_kl),
    "decoupled_kl": _usual(rivals.decoupled_kl),
    "softmax_confidence": _usual(lambda logits: logits.softmax(1).amax(1)),
    "percentile_mask": _usual(lambda confidence: (confidence >= confidence.quantile(0.5)).float()),
    "dakd_loss": _usual(rivals.dakd),
    "mce_objective": _usual(rivals.mce),
    "gem_pool": _usual(rivals.gem),
    "gem_pool_learned": _usual(rivals.gem),
    "purifier": _usual(rivals.purifier),
    "purifier_layer": _usual(rivals.purifier_layer),
    "prompt_consistency": _usual(torch.nn.functional.l1_loss),
    "modality_prompts": _usual(rival_prompts.prompts),
    "augment": _augment,
    "augment_bfloat16": partial(_augment, dtype=torch.bfloat16),
    "blur_jitter": _blur_jitter,
}
# On a card: the published batches, and those at which matrices of pairs no longer fit.
ON_A_CARD = dict.fromkeys(
    ("triplet_loss", "weighted_triplet_loss", "graph_alignment"),
    tuple((n, 2048) for n in (64, 128, 512, 8192, 65536)),
)
NOT_DEFINED = {"pairwise_distance", "blur_jitter"}  # the eager code is the definition


def _against(op, case, sizes=None, **options):
    def build(*size, device="cpu"):
        work = case.build(*size, device=device, **options)
        definition = {} if op in NOT_DEFINED else {"definition": work.definition()}
        return work.passes(definition | RIVALS.get(op, lambda *_: {})(*work.args))

    return Case(op, sizes or case.sizes, build, gpu=ON_A_CARD.get(op), settle=case.settle)


def _alone(*size, device="cpu"):
    """Small batches stay in the caches that the rivals empty: ours and the floor in turn."""
    return OPS["triplet_loss"].build(*size, device=device).passes({})


OPS = {case.op: case for case in bench.CASES}
CASES = (
    *(_against(op, case) for op, case in OPS.items()),
    _against("augment_bfloat16", OPS["augment"], OPS["augment"].sizes[:1], dtype=torch.bfloat16),
    Case("triplet_loss_alone", OPS["triplet_loss"].sizes[:1], _alone),
)
