"""A message for every wrong argument of the functions on pairs and centers."""

import pytest
import torch

from vifast import functional as F

FEAT, LABELS, SIDES = torch.randn(6, 4), torch.arange(6) // 2, torch.arange(6) % 2
TABLE = torch.randn(3, 4)
CALLS = {
    F.graph_alignment: {"a": FEAT, "b": FEAT},
    F.relation_alignment: {"student": FEAT, "teacher": FEAT},
    F.class_centers: {"feat": FEAT, "labels": LABELS, "num_classes": 3},
    F.center_hinge: {"raw": FEAT, "purified": FEAT, "labels": LABELS, "modality": SIDES},
    F.center_triplet_loss: {"feat_v": FEAT, "feat_i": FEAT, "labels": LABELS},
    F.prototype_alignment: {"student": FEAT, "teacher": FEAT, "prototypes": TABLE},
    F.center_loss: {"feat": FEAT, "labels": LABELS, "centers": TABLE},
    F.center_cluster_loss: {"feat": FEAT, "labels": LABELS},
    F.neighbor_loss: {"feat": FEAT, "labels": LABELS},
    F.decoupled_kl: {"student": FEAT, "teacher": FEAT, "labels": LABELS},
}
NOT_ROWS = [
    (FEAT.tolist(), TypeError, r"expected a tensor \[N, D\], got list"),
    (FEAT.long(), TypeError, "expected a floating-point tensor, got torch.int64"),
    (FEAT[0], ValueError, r"expected shape \[N, D\], got \[4\]"),
]
NOT_LIKE = [
    (FEAT.double(), TypeError, "expected torch.float32 as {}, got torch.float64"),
    (FEAT.to("meta"), ValueError, "expected device cpu as {}, got meta"),
]
FEWER_ROWS = (FEAT[:5], ValueError, r"expected 6 rows as in {}, got \[5, 4\]")
FEWER_COLUMNS = (FEAT[:, :3], ValueError, r"expected 4 columns as in {}, got \[6, 3\]")
NOT_LABELS = [
    (LABELS.tolist(), TypeError, r"expected an integer tensor \[N\], got list"),
    (LABELS.float(), TypeError, "expected an integer tensor, got torch.float32"),
    (LABELS[:5], ValueError, r"expected shape \[6\], one per row of {}, got \[5\]"),
]
NOT_A_NUMBER = [("1", TypeError, "expected a number, got str"), (True, TypeError, "expected a number, got bool")]
NEGATIVE = [*NOT_A_NUMBER, (-0.1, ValueError, r"expected at least 0, got -0\.1")]
NOT_POSITIVE = [*NOT_A_NUMBER, (0.0, ValueError, r"expected a number above 0, got 0\.0")]
NOT_A_FRACTION = [*NOT_A_NUMBER, (1.1, ValueError, r"expected 0 to 1, got 1\.1")]
NOT_A_COUNT = [(2.0, TypeError, "expected an integer, got float"), (-1, ValueError, "expected an integer >= 0, got -1")]
NOT_WEIGHTS = [
    ([1], TypeError, r"expected a tensor \[N\], got list"),
    (LABELS.to(torch.complex64), TypeError, "expected numbers or bools, got torch.complex64"),
    (LABELS[:5], ValueError, r"expected shape \[6\], one per row of {}, got \[5\]"),
    (LABELS.to("meta"), ValueError, "expected device cpu as {}, got meta"),
]
CHOICE = [("no", ValueError, "expected one of .*, got 'no'")]
WRONG = [
    (F.graph_alignment, "a", NOT_ROWS),
    (F.graph_alignment, "b", [*NOT_ROWS, *NOT_LIKE, FEWER_ROWS]),
    (F.graph_alignment, "floor", NEGATIVE),
    (F.graph_alignment, "reduction", CHOICE),
    (F.graph_alignment, "precision", CHOICE),
    (F.relation_alignment, "student", NOT_ROWS),
    (F.relation_alignment, "teacher", [*NOT_ROWS, *NOT_LIKE, FEWER_ROWS]),
    (F.relation_alignment, "temperature", NOT_POSITIVE),
    (F.relation_alignment, "keep", NOT_WEIGHTS),
    (F.relation_alignment, "precision", CHOICE),
    (F.class_centers, "feat", NOT_ROWS),
    (F.class_centers, "labels", NOT_LABELS),
    (F.class_centers, "num_classes", NOT_A_COUNT),
    (F.center_hinge, "raw", NOT_ROWS),
    (F.center_hinge, "purified", [*NOT_ROWS, *NOT_LIKE, FEWER_ROWS, FEWER_COLUMNS]),
    (F.center_hinge, "labels", NOT_LABELS),
    (F.center_hinge, "modality", NOT_LABELS),
    (F.center_hinge, "margin", NEGATIVE),
    (F.center_triplet_loss, "feat_v", NOT_ROWS),
    (F.center_triplet_loss, "feat_i", [*NOT_ROWS, *NOT_LIKE, FEWER_ROWS, FEWER_COLUMNS]),
    (F.center_triplet_loss, "labels", NOT_LABELS),
    (F.center_triplet_loss, "margin", NEGATIVE),
    (F.center_triplet_loss, "sample_weight", NOT_A_FRACTION),
    (F.center_triplet_loss, "precision", CHOICE),
    (F.prototype_alignment, "student", NOT_ROWS),
    (F.prototype_alignment, "teacher", [*NOT_ROWS, *NOT_LIKE, FEWER_ROWS, FEWER_COLUMNS]),
    (F.prototype_alignment, "prototypes", [*NOT_ROWS, *NOT_LIKE, FEWER_COLUMNS]),
    (F.prototype_alignment, "tau", NOT_POSITIVE),
    (F.prototype_alignment, "kappa", NEGATIVE),
    (F.center_loss, "feat", NOT_ROWS),
    (F.center_loss, "labels", NOT_LABELS),
    (F.center_loss, "centers", [*NOT_ROWS, *NOT_LIKE, FEWER_COLUMNS]),
    (F.center_cluster_loss, "feat", NOT_ROWS),
    (F.center_cluster_loss, "labels", NOT_LABELS),
    (F.center_cluster_loss, "margin", NEGATIVE),
    (F.center_cluster_loss, "precision", CHOICE),
    (F.neighbor_loss, "feat", NOT_ROWS),
    (F.neighbor_loss, "labels", NOT_LABELS),
    (F.neighbor_loss, "metric", CHOICE),
    (F.neighbor_loss, "temperature", NOT_POSITIVE),
    (F.neighbor_loss, "reduction", CHOICE),
    (F.neighbor_loss, "precision", CHOICE),
    (F.decoupled_kl, "student", NOT_ROWS),
    (F.decoupled_kl, "teacher", [*NOT_ROWS, *NOT_LIKE]),
    (F.decoupled_kl, "teacher", [(FEAT[:5], ValueError, r"expected shape \[6, 4\] as {}, got \[5, 4\]")]),
    (F.decoupled_kl, "labels", NOT_LABELS),
    (F.decoupled_kl, "alpha", NEGATIVE),
    (F.decoupled_kl, "beta", NEGATIVE),
    (F.decoupled_kl, "temperature", NOT_POSITIVE),
    (F.decoupled_kl, "reduction", CHOICE),
]


@pytest.mark.parametrize(
    ("function", "name", "value", "error", "message"),
    [(function, name, *case) for function, name, cases in WRONG for case in cases],
)
def test_a_wrong_argument_is_named(function, name, value, error, message):
    like = next(iter(CALLS[function]))
    with pytest.raises(error, match=f"^{name}: {message.format(like)}$"):
        function(**(CALLS[function] | {name: value}))
