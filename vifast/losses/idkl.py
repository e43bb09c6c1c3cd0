from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vifast import _checks
from vifast.functional import graph_alignment, standardized_kl, symmetric_kl, triplet_loss

GRAPHS = ("full", "light", "off")
DISTILL = ("symmetric", "to_shared")
TERMS = ("triplet_shared", "triplet_specific", "tgsa", "csa", "mdr")


class IDKLLoss(nn.Module):
    r"""What IDKL asks of the features and logits of its two branches: triplets, TGSA, CSA and MDR; no heads.

    Subscripts V and I select the visible and infrared rows in batch order, f are pooled features before the neck, z and
    y the logits of the shared and the specific branch, R_k their block form, S the symmetric divergence of two graphs
    (:func:`vifast.functional.graph_alignment`) or of two sets of rows (:func:`vifast.functional.symmetric_kl`), and X
    the first half of the visible rows over the first half of the infrared ones.

    =========  =========================================================  ========  =========  =======
    part       formula                                                    ``full``  ``light``  ``off``
    =========  =========================================================  ========  =========  =======
    triplet_*  batch-hard over both modalities, of shared and specific    1         1          1
    tgsa       S(f_V, specific f_V) + S(f_I, specific f_I)                0.6       0.1        not computed
    csa        S(z_V, y_V) + S(z_I, y_I), and the same of R_k             0.8       0.3        0.3
    mdr        S(z_V, z_I) + S(R_k z_V, R_k z_I) + graphs                 1         1          1
    \- graphs  S(f_V, f_I) + S(f_V, f_X) + S(f_X, f_I)                    1         0.1, 1st   0
    =========  =========================================================  ========  =========  =======

    Args:
        margin: of the triplets, at least 0.
        graph: the column of the table. The published code takes ``full`` where the batch has 120 rows.
        num_instances: images K of an identity in a batch, for the blocks k = K / 2. ``None`` counts the first row's
            identity, which on a GPU reads one number back.
        distill: tgsa and csa move both branches alike (``"symmetric"``, as the published code does), or only the shared
            one towards the specific one, which is held fixed (``"to_shared"``, as the abstract says): KL(q || p) of
            the specific branch's q alone in place of S.
        terms: the parts that count; the others are 0 and not computed.

    ``forward(shared, specific, logits_shared, logits_specific, labels, modality)``: features [B, C], logits
    [B, num_classes], labels [B], modality [B] (0 visible, 1 infrared). Half of the rows are visible, and both halves
    list identities in the same order with the same number of images; ``full`` needs that half to be even.

    Returns:
        A dict of scalars: ``loss`` (weighted total), ``triplet_shared``, ``triplet_specific``, ``tgsa`` and ``csa``
        without their weights, ``mdr`` as it enters the total.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Source: spec idkl 4-6; Ren and Zhang 2024.

    Example:
        >>> import torch
        >>> feat, logits = torch.randn(8, 6), torch.randn(8, 3)
        >>> labels, modality = torch.arange(8) // 4, torch.arange(8) % 2
        >>> sorted(IDKLLoss(graph="light")(feat, feat, logits, logits, labels, modality))
        ['csa', 'loss', 'mdr', 'tgsa', 'triplet_shared', 'triplet_specific']
    """

    def __init__(
        self,
        *,
        margin: float = 1.3,
        graph: str = "full",
        num_instances: int | None = None,
        distill: str = "symmetric",
        terms: Sequence[str] = TERMS,
    ):
        super().__init__()
        _checks.non_negative("margin", margin)
        _checks.one_of("graph", graph, GRAPHS)
        _checks.one_of("distill", distill, DISTILL)
        for term in terms:
            _checks.one_of("terms", term, TERMS)
        if num_instances is not None and num_instances < 2:
            raise ValueError(f"num_instances: expected at least 2 images of an identity, got {num_instances}")
        self.margin, self.graph, self.num_instances = margin, graph, num_instances
        self.distill, self.terms = distill, tuple(terms)

    def forward(
        self,
        shared: Tensor,
        specific: Tensor,
        logits_shared: Tensor,
        logits_specific: Tensor,
        labels: Tensor,
        modality: Tensor,
    ) -> dict[str, Tensor]:
        _checks.rows("shared", shared)
        others = {"specific": specific, "logits_shared": logits_shared, "logits_specific": logits_specific}
        for name, value in others.items():
            _checks.rows(name, value)
            if len(value) != len(shared):
                raise ValueError(f"{name}: expected {len(shared)} rows as in shared, got {len(value)}")
        modality = _checks.labels("modality", modality, "shared", shared)
        labels = _checks.labels("labels", labels, "shared", shared)
        half = self._half(modality)
        block = self._block(labels, half)
        order = modality.argsort(stable=True)  # visible rows, then infrared ones, each in batch order
        rows = (shared, specific, logits_shared, logits_specific)
        f, g, z, y = (value.index_select(0, order).split(half) for value in rows)
        parts = {
            "triplet_shared": lambda: triplet_loss(shared, labels, margin=self.margin),
            "triplet_specific": lambda: triplet_loss(specific, labels, margin=self.margin),
            "tgsa": lambda: self._tgsa(f, g),
            "csa": lambda: sum(self._distilled(z[m], y[m], k) for m in (0, 1) for k in (None, block)),
            "mdr": lambda: sum(symmetric_kl(*z, block=k) for k in (None, block)) + self._graphs(*f),
        }
        zero = shared.new_zeros((), dtype=torch.promote_types(shared.dtype, torch.float32))
        parts = {name: part() if name in self.terms else zero for name, part in parts.items()}
        tgsa_weight, csa_weight = {"full": (0.6, 0.8), "light": (0.1, 0.3), "off": (0.0, 0.3)}[self.graph]
        loss = parts["triplet_shared"] + parts["triplet_specific"] + parts["mdr"] + csa_weight * parts["csa"]
        return {"loss": loss + tgsa_weight * parts["tgsa"], **parts}

    def _half(self, modality: Tensor) -> int:
        half = len(modality) // 2
        if modality.device.type == "cpu" and int((modality == 0).sum()) * 2 != len(modality):
            raise ValueError("modality: expected as many visible rows (0) as infrared rows (1)")
        if half == 0 or len(modality) % 2 or (self.graph == "full" and half % 2):
            unit = 4 if self.graph == "full" else 2
            raise ValueError(f"modality: expected a multiple of {unit} rows for {self.graph!r}, got {len(modality)}")
        return half

    def _block(self, labels: Tensor, half: int) -> int:
        count = self.num_instances or int((labels == labels[0]).sum())
        if count < 2 or half % (count // 2):
            raise ValueError(f"labels: expected equally many images of each identity, at least 2, got {count} of one")
        return count // 2

    def _tgsa(self, f, g) -> Tensor:
        if self.graph == "off":
            return f[0].new_zeros((), dtype=torch.promote_types(f[0].dtype, torch.float32))
        symmetric = self.distill == "symmetric"
        teacher = g if symmetric else [rows.detach() for rows in g]
        return sum(graph_alignment(f[m], teacher[m], symmetric=symmetric) for m in (0, 1))

    def _distilled(self, z: Tensor, y: Tensor, block: int | None) -> Tensor:
        if self.distill == "symmetric":
            return symmetric_kl(z, y, block=block)
        if block is not None:
            z, y = (rows.unflatten(0, (-1, block)).transpose(0, 1).flatten(1) for rows in (z, y))
        return standardized_kl(z, y.detach(), (1.0,), standardize="none")

    def _graphs(self, f_v: Tensor, f_i: Tensor) -> Tensor | float:
        if self.graph == "off":
            return 0.0
        if self.graph == "light":
            return 0.1 * graph_alignment(f_v, f_i)
        quarter = len(f_v) // 2
        f_x = torch.cat((f_v[:quarter], f_i[:quarter]))
        return graph_alignment(f_v, f_i) + graph_alignment(f_v, f_x) + graph_alignment(f_x, f_i)

    def extra_repr(self) -> str:
        settings = f"margin={self.margin}, graph={self.graph!r}, num_instances={self.num_instances}"
        return f"{settings}, distill={self.distill!r}, terms={self.terms}"
