import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vifast import _checks, functional

KAPPA = {"release": 0.1, "clean": 10.0}


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
        self.margin, self.omega, self.nu, self.symmetric = margin, omega, nu, symmetric

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
        center = functional.center_triplet_loss(
            feat_v, feat_i, labels, margin=self.margin, sample_weight=self.nu, symmetric=self.symmetric
        )
        ce = _cross_entropy(logits_v, labels) + _cross_entropy(logits_i, labels)
        triplet = functional.triplet_loss(torch.cat((feat_v, feat_i)), labels.repeat(2), margin=self.margin)
        base = ce + triplet + self.omega * center
        prompt = intra = inter = torch.zeros_like(triplet)
        if teacher_prompts is not None:
            prompt = functional.prompt_consistency(prompts, teacher_prompts).to(triplet.dtype)
        if teacher_v is not None:
            visible = (feat_v if align_v is None else align_v, teacher_v)
            infrared = (feat_i if align_i is None else align_i, teacher_i)
            intra = 0.5 * (self._align(*visible, prototypes_v) + self._align(*infrared, prototypes_i))
            inter = 0.5 * (self._align(*visible, prototypes_i) + self._align(*infrared, prototypes_v))
        loss = base + self.alpha * prompt + self.beta * (self.mu * inter + (1 - self.mu) * intra)
        parts = {"ce": ce, "triplet": triplet, "center": center, "prompt": prompt, "intra": intra, "inter": inter}
        return {"loss": loss, "base": base, **parts}

    def _align(self, student: Tensor, teacher: Tensor, prototypes: Tensor) -> Tensor:
        return functional.prototype_alignment(student, teacher, prototypes, tau=self.tau, kappa=self.kappa)

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
