import torch
from torch import Tensor, nn

from vifast import _checks
from vifast.functional import graph_alignment, symmetric_kl, triplet_loss

GRAPHS = ("full", "light", "off")


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

    def __init__(self, *, margin: float = 1.3, graph: str = "full", num_instances: int | None = None):
        super().__init__()
        _checks.non_negative("margin", margin)
        _checks.one_of("graph", graph, GRAPHS)
        if num_instances is not None and num_instances < 2:
            raise ValueError(f"num_instances: expected at least 2 images of an identity, got {num_instances}")
        self.margin, self.graph, self.num_instances = margin, graph, num_instances

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
            "triplet_shared": triplet_loss(shared, labels, margin=self.margin),
            "triplet_specific": triplet_loss(specific, labels, margin=self.margin),
            "tgsa": self._tgsa(f, g),
            "csa": sum(symmetric_kl(z[m], y[m], block=k) for m in (0, 1) for k in (None, block)),
            "mdr": sum(symmetric_kl(*z, block=k) for k in (None, block)) + self._graphs(*f),
        }
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
        return graph_alignment(f[0], g[0]) + graph_alignment(f[1], g[1])

    def _graphs(self, f_v: Tensor, f_i: Tensor) -> Tensor | float:
        if self.graph == "off":
            return 0.0
        if self.graph == "light":
            return 0.1 * graph_alignment(f_v, f_i)
        quarter = len(f_v) // 2
        f_x = torch.cat((f_v[:quarter], f_i[:quarter]))
        return graph_alignment(f_v, f_i) + graph_alignment(f_v, f_x) + graph_alignment(f_x, f_i)

    def extra_repr(self) -> str:
        return f"margin={self.margin}, graph={self.graph!r}, num_instances={self.num_instances}"
