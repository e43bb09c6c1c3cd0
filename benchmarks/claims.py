"""The sentences with measured numbers of README.md and of the kernels' docstrings; ``benchmarks/table.py`` fills them.

``{op size what}`` is a number of the record of DEVICE, rounded as in the tables: ``floor``, the time of vifast as a
ratio to the floor; ``ms``; or a provider's name, how many times as long as vifast it takes. ``what`` may name a pass,
as in ``forward.floor``; else it is of the whole, forward and backward where there are both. Without ``op`` it is the
first that the entry names.
"""

DEVICE = "amd-epyc-x2"

# Row of the README's table, by how it begins: its last two cells, against the floor and against others.
README = {
    "`pairwise_distance`": (
        "{2048x2048 floor} × one product at N = 2048, {128x2048 floor} × at 128",
        "{2048x2048 cdist} × faster than `torch.cdist` at N = 2048",
    ),
    "`triplet_loss`, `hard_pairs`": (
        "{2048x2048 floor} × one product at N = 2048, {512x2048 floor} × at 512, {64x2048 floor} × at 64 among all "
        "its rivals, {triplet_loss_alone 64x2048 floor} × alone with the product",
        "{64x2048 eager} × faster at N = 64, {512x2048 eager} × at 512, {8192x2048 eager} × at 8192",
    ),
    "`weighted_triplet_loss`": (
        "{2048x2048 floor} × three products at N = 2048, {512x2048 floor} × at 512, {64x2048 floor} × at 64",
        "{64x2048 eager} × faster at N = 64, {512x2048 eager} × at 512, {8192x2048 eager} × at 8192",
    ),
    "`graph_alignment`": (
        "{120x2048 floor} × its products at N = 120, {2048x2048 floor} × at 2048",
        "{120x2048 eager} × faster at N = 120, {2048x2048 eager} × at 2048",
    ),
    "`relation_alignment`": (
        "{120x2048 floor} × its products at N = 120, {2048x2048 floor} × at 2048",
        "{120x2048 eager} × faster at N = 120, {2048x2048 eager} × at 2048",
    ),
    "`prototype_alignment`": (
        "{32x713x768 floor} × its products (32 × 713 × 768)",
        "{32x713x768 eager} × faster",
    ),
    "`symmetric_kl`": (
        "{60x395 floor} × one pass over 60 × 395, {512x713 floor} × over 512 × 713",
        "{60x395 eager} × and {512x713 eager} × faster",
    ),
    "`standardized_kl`": (
        "{64x2048 floor} × one pass (64 × 2048, five temperatures)",
        "{64x2048 eager} × faster",
    ),
    "`decoupled_kl`": (
        "{60x395 floor} × one pass over 60 × 395, {512x713 floor} × over 512 × 713",
        "{60x395 eager} × and {512x713 eager} × faster",
    ),
    "`entropy_hinge`, `center_hinge`": (
        "{120x395 floor} × and {center_hinge 120x2048 floor} × one pass (N = 120)",
        "{120x395 eager} × and {center_hinge 120x2048 eager} × faster",
    ),
    "`class_centers`, `center_triplet_loss`": (
        "{center_triplet_loss 120x2048 floor} × its products at N = 120, {center_triplet_loss 512x2048 floor} × at 512",
        "{center_triplet_loss 120x2048 eager} × faster at N = 120, {center_triplet_loss 512x2048 eager} × at 512",
    ),
    "`center_loss`, `center_cluster_loss`": (
        "{120x395x2048 floor} × one pass over rows and gradients; {center_cluster_loss 120x2048 floor} × its products "
        "at N = 120, {center_cluster_loss 512x2048 floor} × at 512",
        "{120x395x2048 eager_gather} × faster; {center_cluster_loss 120x2048 eager} × at N = 120, "
        "{center_cluster_loss 512x2048 eager} × at 512",
    ),
    "`neighbor_loss`": (
        "{128x2048 floor} × three products at N = 128, {2048x2048 floor} × at 2048",
        "{128x2048 eager} × faster at N = 128, {2048x2048 eager} × at 2048; {128x2048 pml} × than "
        "pytorch-metric-learning's",
    ),
    "`gem_pool`": (
        "{120x2048x24x9 floor} × the bytes (120 × 2048 × 24 × 9)",
        "{120x2048x24x9 eager} × faster",
    ),
    "`InstanceNormPurifier`'s core": (
        "{purifier 120x2048x24x9 floor} × the bytes (120 × 2048 × 24 × 9)",
        "{purifier 120x2048x24x9 eager} × faster",
    ),
    "`ModalityPrompts`": (
        "{modality_prompts 64x3x256x128 floor} × the bytes (64 × 3 × 256 × 128)",
        "{modality_prompts 64x3x256x128 eager} × faster",
    ),
    "`IDKLObjective`, `DAKDLoss`": (
        "{idkl_objective 120x2048x395 ms} ms for a batch of 120 ({idkl_objective 120x2048x395 floor} × the "
        "classifiers' products); {dakd_loss 32x395x2048 floor} × the class products",
        "{dakd_loss 32x395x2048 eager} × faster (DAKD, 32 + 32 rows)",
    ),
    "`MCEObjective`, `memory_update_`": (
        "{mce_objective 32x2048x395 floor} × its products; {memory_update 32x395x2048 floor} × the bytes of the rows "
        "(3 × 32 × 2048)",
        "{mce_objective 32x2048x395 eager} × faster; {memory_update 32x395x2048 eager} × than a loop over classes",
    ),
    "`search`": (
        "{10000x100000x512x10 floor} × the float32 product (10,000 × 100,000 × 512, k = 10; "
        "{10000x100000x512x100 floor} × at 100)",
        "{10000x100000x512x10 matmul_topk} × faster than `mm` + `topk`, {10000x100000x512x10 faiss} × faster than "
        "faiss `IndexFlat`",
    ),
    "`evaluate`": (
        "{3803x3010x2048 floor} × the product (3803 × 3010 × 2048), {7166x8680x2048 floor} × (7166 × 8680)",
        "{3803x3010x2048 numpy_sort} × faster than sorting in NumPy (3803 × 3010)",
    ),
    "`evaluate_distance`": (
        "",
        "{3803x3010 numpy_sort} × faster than sorting in NumPy (3803 × 3010)",
    ),
    "`evaluate_trials`, `protocols`": (
        "{3803x301x10x2048 floor} × the product with the union (3803 × ten of 3010)",
        "{3803x301x10x2048 one_by_one} × faster than ten evaluations",
    ),
    "`rerank`": (
        "{7166x8680x2048 floor} × the product N × N (N = 15,846)",
        "{3803x3010x2048 numpy_classic} × faster than the NumPy classic with the same products (3803 × 3010)",
    ),
    "`augment`": (
        "{64x384x128 floor} × the bytes (64 × 384 × 128)",
        "{64x384x128 eager} × faster than batched PyTorch, {64x384x128 pillow} × than Pillow image by image",
    ),
    "`blur_jitter`": (
        "{64x256x128 floor} × the bytes (64 × 256 × 128), of which a fourth is blurred",
        "{64x256x128 compile} × faster than `torch.compile`, {64x256x128 pillow} × than Pillow image by image",
    ),
    "`make_loader`, `open_cache`": (
        "",
        "{load_images 512x384x144 processes} × faster than `DataLoader` with Pillow in two processes; from the cache "
        "{image_cache 64x384x144 pillow} × faster than decoding",
    ),
}

# "Measured" of kernels/<file>.py.
KERNELS = {
    "augment": (
        "augment",
        "{64x384x128 floor} and {64x288x144 floor} of the bytes for 64 images to float32 on two cores of an AMD EPYC.",
    ),
    "batch_hard": (
        "triplet_loss",
        "{64x2048 floor}, {512x2048 floor}, {2048x2048 floor} and {8192x2048 floor} of the platform's product for "
        "64, 512, 2048 and 8192 rows of 2048 on two cores of an AMD EPYC, forward and backward.",
    ),
    "blur_jitter": (
        "blur_jitter",
        "{64x256x128 floor} and {64x384x128 floor} of the bytes for 64 images, of which a fourth is blurred and a "
        "fourth jittered, on two cores of an AMD EPYC: arithmetic, not bytes.",
    ),
    "center_hinge": (
        "center_hinge",
        "{120x2048 floor} and {512x2048 floor} of a pass over the bytes for 120 and 512 rows of 2048 on two cores "
        "of an AMD EPYC, forward and backward.",
    ),
    "center_loss": (
        "center_loss",
        "{32x395x2048 floor} and {120x395x2048 floor} of a pass over the bytes for 32 and 120 rows of 2048, 395 "
        "classes, on two cores of an AMD EPYC, forward and backward: gradients go to new memory, the pass does not.",
    ),
    "center_triplet": (
        "center_triplet_loss",
        "{120x2048 floor} and {512x2048 floor} of the platform's products for 120 and 512 rows of 2048 on two cores "
        "of an AMD EPYC, forward and backward.",
    ),
    "class_centers": (
        "center_triplet_loss",
        "within center_triplet_loss, {120x2048 floor} of its products for 120 rows of 2048 on two cores of an AMD "
        "EPYC, forward and backward.",
    ),
    "class_logits": (
        "dakd_loss",
        "with the rest of DAKDLoss {32x395x2048 floor} of the platform's products for 32 + 32 rows, 395 classes, on "
        "two cores of an AMD EPYC, forward and backward.",
    ),
    "confidence_weights": (
        "dakd_loss",
        "within DAKDLoss, whose whole is {32x395x2048 floor} of its products for 32 + 32 rows, 395 classes, on two "
        "cores of an AMD EPYC, forward and backward.",
    ),
    "decoupled_kl": (
        "decoupled_kl",
        "{60x395 floor} and {512x713 floor} of a pass over the bytes for 60 x 395 and 512 x 713 on two cores of an "
        "AMD EPYC, forward and backward: two exponentials an element.",
    ),
    "entropy_hinge": (
        "entropy_hinge",
        "{120x395 floor} and {512x713 floor} of a pass over the bytes for 120 x 395 and 512 x 713 on two cores of "
        "an AMD EPYC, forward and backward: two exponentials an element.",
    ),
    "gem_pool": (
        "gem_pool",
        "{120x2048x24x9 floor} and {64x2048x24x8 floor} of the bytes, gradients into new memory, for 120 x 2048 x "
        "24 x 9 and 64 x 2048 x 24 x 8 on two cores of an AMD EPYC, forward and backward.",
    ),
    "graph_alignment": (
        "graph_alignment",
        "{60x2048 floor}, {120x2048 floor} and {2048x2048 floor} of the platform's products (60, 120, 2048 rows of "
        "2048, both ways, 2 cores of an AMD EPYC).",
    ),
    "memory_update": (
        "memory_update",
        "{32x395x2048 floor} and {128x395x2048 floor} of reading and writing the rows once (3 streams of 32 and 128 "
        "rows of 2048, 395 classes, 2 cores of an AMD EPYC).",
    ),
    "center_cluster": (
        "center_cluster_loss",
        "{64x2048 floor}, {120x2048 floor} and {512x2048 floor} of its bytes and products for 64, 120 and 512 rows of "
        "2048, four of an identity, on two cores of an AMD EPYC, forward and backward.",
    ),
    "neighbor_loss": (
        "neighbor_loss",
        "{64x2048 floor}, {128x2048 floor}, {512x2048 floor} and {2048x2048 floor} of the platform's three products "
        "for 64, 128, 512 and 2048 rows of 2048 on two cores of an AMD EPYC, cosines, forward and backward.",
    ),
    "relation_alignment": (
        "relation_alignment",
        "{60x2048 floor}, {120x2048 floor} and {2048x2048 floor} of the platform's products (60, 120, 2048 rows of "
        "2048, both ways, 2 cores of an AMD EPYC).",
    ),
    "linear": (
        "idkl_objective",
        "with the rest of IDKLObjective {120x2048x395 floor} of the classifiers' products by the platform for 120 "
        "rows, 395 classes, on two cores of an AMD EPYC, forward and backward.",
    ),
    "pairwise_distance": (
        "pairwise_distance",
        "{128x2048 floor}, {512x2048 floor} and {2048x2048 floor} of the platform's product for 128, 512 and 2048 "
        "rows of 2048 on two cores of an AMD EPYC.",
    ),
    "prompt_consistency": (
        "prompt_consistency",
        "{64x3x256x128 floor} of the bytes for 64 x 3 x 256 x 128 on two cores of an AMD EPYC, forward and backward.",
    ),
    "prompt_hidden": (
        "modality_prompts",
        "within ModalityPrompts, {64x3x256x128 floor} of the bytes for 64 x 3 x 256 x 128 on two cores of an AMD EPYC, "
        "forward and backward: five products of 768 x 24 a cell.",
    ),
    "percentile_mask": (
        "percentile_mask",
        "{64 floor} and {1024 floor} of a copy for 64 and 1024 confidences, {softmax_confidence 64x2048 floor} "
        "of reading 64 x 2048 logits on two cores of an AMD EPYC.",
    ),
    "prompt_mixture": (
        "modality_prompts",
        "within ModalityPrompts, {64x3x256x128 floor} of the bytes of the images, 64 x 3 x 256 x 128, on two cores of "
        "an AMD EPYC, forward and backward; the planes are a thirty-second of them.",
    ),
    "prompt_statistics": (
        "modality_prompts",
        "within ModalityPrompts, {64x3x256x128 forward.floor} of the bytes of the images, 64 x 3 x 256 x 128, on two "
        "cores of an AMD EPYC, forward; the planes are a thirty-second of them.",
    ),
    "prompt_insertion": (
        "modality_prompts",
        "within ModalityPrompts, {64x3x256x128 forward.floor} of the bytes forward and {64x3x256x128 backward.floor} "
        "backward for 64 x 3 x 256 x 128 on two cores of an AMD EPYC: products and draws, not bytes.",
    ),
    "prototype_alignment": (
        "prototype_alignment",
        "{32x713x768 floor} and {512x713x768 floor} of the platform's products for 32 and 512 rows, 713 prototypes "
        "of 768 on two cores of an AMD EPYC, forward and backward.",
    ),
    "purifier": (
        "purifier",
        "{120x2048x24x9 floor} and {120x2048x18x9 floor} of the bytes, gradients into new memory, for maps of 120 x "
        "2048 x 24 x 9 and 18 x 9 on two cores of an AMD EPYC, forward and backward.",
    ),
    "purifier_gates": (
        "purifier_layer",
        "with the rest of the purifier {60x2048x24x9 floor} of the bare products for maps of 60 x 2048 x 24 x 9 on two "
        "cores of an AMD EPYC, forward and backward.",
    ),
    "standardized_kl": (
        "standardized_kl",
        "{64x2048 floor} and {128x2048 floor} of a pass over the bytes for 64 and 128 rows of 2048, five "
        "temperatures, on two cores of an AMD EPYC, forward and backward: arithmetic, not bytes.",
    ),
    "symmetric_kl": (
        "symmetric_kl",
        "{60x395 floor} and {512x713 floor} of a pass over the bytes for 60 x 395 and 512 x 713 on two cores of an "
        "AMD EPYC, forward and backward: two exponentials an element.",
    ),
    "unit_rows": (
        "relation_alignment",
        "within relation_alignment, {120x2048 floor} of its products for 120 rows of 2048 on two cores of an AMD "
        "EPYC, forward and backward.",
    ),
    "weighted_triplet": (
        "weighted_triplet_loss",
        "{64x2048 floor}, {512x2048 floor}, {2048x2048 floor} and {8192x2048 floor} of the platform's three "
        "products for 64, 512, 2048 and 8192 rows of 2048 on two cores of an AMD EPYC, forward and backward.",
    ),
}
