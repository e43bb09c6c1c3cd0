from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vifast import _checks, functional

KAPPA = {"release": 0.1, "clean": 10.0}
TERMS = ("ce", "triplet", "center", "prompt", "intra", "inter")


class CKDALoss(nn.Module):
    r"""Objective of CKDA, lifelong visible-infrared re-identification.

        L      = L_base + alpha L_prompt + beta (mu L_inter + (1 - mu) L_intra)
        L_base = CE(visible) + CE(infrared) + L_triplet + omega L_center

    Without a teacher (the first stage) it is L_base. :func:`vifast.functional.triplet_loss` mines in both modalities
    together, :func:`vifast.functional.center_triplet_loss` is L_center; L_intra and L_inter are means of
    :func:`vifast.functional.prototype_alignment` over (V, V), (I, I) and (V, I), (I, V).

    Args:
        preset: ``"release"`` (kappa 0.1, as published code has it, which leaves the alignment all but inert) or
            ``"clean"`` (kappa 10).
        alpha: weight of the prompt term, at least 0.
        beta: weight of the alignment, at least 0.
        mu: share of the inter-modality alignment, 0 to 1.
        tau: temperature of the relation to prototypes, above 0.
        kappa: factor of the relation among samples, at least 0; ``None`` for the preset's.
        margin: of all triplets, at least 0.
        omega: weight of the center term, at least 0.
        nu: share of its center-to-sample half, 0 to 1.
        symmetric: anchor both center-to-sample halves on samples (R11).
        terms: the parts that count, of `TERMS`; the others are 0 and not computed.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Source: specs ckda 4 to 6.

    Example:
        >>> import torch
        >>> feat, logits, labels = torch.eye(4), torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
        >>> losses = CKDALoss()(feat, feat, logits, logits, labels)
        >>> sorted(losses)
        ['base', 'ce', 'center', 'inter', 'intra', 'loss', 'prompt', 'triplet']
        >>> round(losses["ce"].item(), 4)
        1.3863
    """

    def __init__(
        self,
        *,
        preset: str = "clean",
        alpha: float = 1,
        beta: float = 1,
        mu: float = 0.5,
        tau: float = 0.1,
        kappa: float | None = None,
        margin: float = 0.1,
        omega: float = 1,
        nu: float = 0.5,
        symmetric: bool = False,
        terms: Sequence[str] = TERMS,
    ):
        super().__init__()
        _checks.one_of("preset", preset, tuple(KAPPA))
        kappa = KAPPA[preset] if kappa is None else kappa
        for name, value in (("alpha", alpha), ("beta", beta), ("kappa", kappa), ("margin", margin), ("omega", omega)):
            _checks.non_negative(name, value)
        for name, value in (("mu", mu), ("nu", nu)):
            _checks.within(name, value, 0, 1)
        _checks.positive("tau", tau)
        self.preset, self.alpha, self.beta, self.mu, self.tau, self.kappa = preset, alpha, beta, mu, tau, kappa
        _checks.some_of("terms", terms, TERMS)
        self.margin, self.omega, self.nu, self.symmetric, self.terms = margin, omega, nu, symmetric, tuple(terms)

    def forward(
        self,
        feat_v: Tensor,
        feat_i: Tensor,
        logits_v: Tensor,
        logits_i: Tensor,
        labels: Tensor,
        *,
        teacher_v: Tensor | None = None,
        teacher_i: Tensor | None = None,
        prototypes_v: Tensor | None = None,
        prototypes_i: Tensor | None = None,
        prompts: Tensor | None = None,
        teacher_prompts: Tensor | None = None,
        align_v: Tensor | None = None,
        align_i: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch of b visible and b infrared images.

        Args:
            feat_v, feat_i: [b, D] features before the neck, for the triplets.
            logits_v, logits_i: [b, C].
            labels: [b] integers in 0 .. C-1, of both modalities.
            teacher_v, teacher_i: [b, D] features of the old model; constant.
            prototypes_v, prototypes_i: [K, D] of the old data; constant. Expected exactly with the teacher's features.
            prompts: the student's prompts, any shape. The first stage, without a teacher, has nothing to hold them to:
                they are accepted and the prompt term is 0.
            teacher_prompts: the old model's, same shape; constant. Expected where both prompts and a teacher are given.
            align_v, align_i: [b, D] student features for the alignment; default ``feat_v``, ``feat_i``.

        Returns:
            ``loss``, the weighted total, and its parts without weights: ``base``, ``ce``, ``triplet``, ``center``,
            ``prompt``, ``intra``, ``inter``. A term that does not apply is 0.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it.
        """
        old = {
            "teacher_v": teacher_v,
            "teacher_i": teacher_i,
            "prototypes_v": prototypes_v,
            "prototypes_i": prototypes_i,
        }
        self._check(feat_v, logits_v, logits_i, labels, old, prompts, teacher_prompts, align_v, align_i)
        wide = torch.promote_types(feat_v.dtype, torch.float32)
        terms: dict[str, Callable[[], Tensor]] = {
            "ce": lambda: _cross_entropy(logits_v, labels) + _cross_entropy(logits_i, labels),
            "triplet": lambda: functional.triplet_loss(
                torch.cat((feat_v, feat_i)), labels.repeat(2), margin=self.margin
            ),
            "center": lambda: functional.center_triplet_loss(
                feat_v, feat_i, labels, margin=self.margin, sample_weight=self.nu, symmetric=self.symmetric
            ),
        }
        if teacher_prompts is not None:
            terms["prompt"] = lambda: functional.prompt_consistency(prompts, teacher_prompts).to(wide)
        if teacher_v is not None:
            visible = (feat_v if align_v is None else align_v, teacher_v)
            infrared = (feat_i if align_i is None else align_i, teacher_i)
            terms["intra"] = lambda: self._aligned(visible, prototypes_v, infrared, prototypes_i)
            terms["inter"] = lambda: self._aligned(visible, prototypes_i, infrared, prototypes_v)
        zero = feat_v.new_zeros((), dtype=wide)
        parts = {name: terms[name]() if name in terms and name in self.terms else zero for name in TERMS}
        base = parts["ce"] + parts["triplet"] + self.omega * parts["center"]
        alignment = self.mu * parts["inter"] + (1 - self.mu) * parts["intra"]
        return {"loss": base + self.alpha * parts["prompt"] + self.beta * alignment, "base": base, **parts}

    def _aligned(self, visible, with_visible: Tensor, infrared, with_infrared: Tensor) -> Tensor:
        """Mean over the modalities of the alignment of (student, teacher) with their prototypes."""
        problems = ((*visible, with_visible), (*infrared, with_infrared))
        return 0.5 * sum(
            functional.prototype_alignment(*problem, tau=self.tau, kappa=self.kappa) for problem in problems
        )

    @staticmethod
    def _check(feat_v, logits_v, logits_i, labels, old, prompts, teacher_prompts, align_v, align_i):
        _checks.rows("feat_v", feat_v)
        for name, logits in (("logits_v", logits_v), ("logits_i", logits_i)):
            _checks.rows(name, logits)
            _checks.same_rows(name, logits, "feat_v", feat_v)
        _checks.labels("labels", labels, "feat_v", feat_v)
        missing = [name for name, value in old.items() if value is None]
        if 0 < len(missing) < len(old):
            given = ", ".join(name for name in old if name not in missing)
            raise ValueError(f"{missing[0]}: expected a tensor beside {given}, got None")
        if len(missing) == len(old) and (align_v is not None or align_i is not None):
            raise ValueError("teacher_v: expected a tensor beside align_v and align_i, got None")
        if teacher_prompts is not None and (prompts is None or prompts.shape != teacher_prompts.shape):
            got = "None" if prompts is None else list(prompts.shape)
            raise ValueError(f"prompts: expected shape {list(teacher_prompts.shape)} as teacher_prompts, got {got}")
        if prompts is not None and teacher_prompts is None and not missing:
            raise ValueError("teacher_prompts: expected a tensor beside prompts and a teacher, got None")

    def extra_repr(self) -> str:
        return f"preset={self.preset!r}, alpha={self.alpha}, beta={self.beta}, mu={self.mu}, kappa={self.kappa}"


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in float32; 0 of no rows."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, labels.to(torch.int64), reduction="sum") / max(len(logits), 1)
