from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vifast import _checks, functional
from vifast.functional.standardized_kl import scaled_standardized_kl
from vifast.kernels.class_logits import class_logits
from vifast.kernels.percentile_mask import percentile_mask, softmax_confidence
from vifast.kernels.temperature_weights import temperature_weights

LEVELS = ("instance", "class")
MODALITIES = ("v", "r")
_KEEP = {"intended": "high", "release": "low"}
_CONFIDENCE = {"intended": "class", "release": "own"}
_BOTH_MODALITIES = (3, 4, 5)  # temperatures that the release also gives to visible rows
_PLAIN = 4.0


class DAKDLoss(nn.Module):
    r"""Objective of DAKD's student: agreement with a frozen teacher in its embedding and in its class profile.

    L = lam_instance L_instance + lam_class L_class, where a level's value is, with D_T of
    :func:`vifast.functional.standardized_kl` and keep_i a mask of the rows that the teacher is sure about,

        L_level = kd_weight sum_T w_T ( mean_i D_T(visible i) + mean_i keep_i D_T(infrared i) ).

    The instance level compares the embeddings themselves, the class level their similarities to the prototypes over
    ``class_temp``. ``variant="intended"`` is what the publication describes. ``"release"`` is what the public code
    computes: its mask, of the less confident half by each level's own confidence, multiplies the mean of the rows
    instead of the rows, and temperatures other than 3, 4, 5 fall on infrared rows alone, where they count once more
    without the mask.

    Args:
        variant: ``"intended"`` or ``"release"``.
        temperatures: numbers above 0.
        kd_weight: at least 0, factor of every divergence.
        lam_instance, lam_class: at least 0, weights of the levels in the total.
        class_temp: above 0.
        levels: those that count, of ``"instance"`` and ``"class"``; the other's part is 0.
        temp_weights: one number at least 0 per temperature; default 1 each.
        standardize, ddof, eps: see :func:`vifast.functional.standardized_kl`.
        class_protos: ``"own"`` prototypes of the row's modality, the other's (``"cross"``), or the mean of ``"both"``.
        mask_rule: ``"percentile"`` of the batch, ``"fixed"`` threshold, ``"ema"`` of the batches' mean confidence
            (updated in training), or ``"none"``.
        mask_q: 0..100, the percentile.
        mask_keep: ``"high"`` or ``"low"`` confidence is kept; default ``"high"``, of ``"release"`` ``"low"``.
        mask_conf: confidence of the ``"class"`` profile at both levels, or each level's ``"own"``; default
            ``"class"``, of ``"release"`` ``"own"``.
        mask_modalities: rows that are masked at all, of ``"v"`` and ``"r"``.
        mask_norm: the masked sum is divided by the rows of the ``"batch"`` or by those ``"kept"``.
        mask_threshold: 0..1, of the fixed rule.
        mask_momentum: 0..1, of the ema rule, which starts at the mean of the first batch.
        plain_kd: the ablation kd_weight (mean D_4(visible) + mean D_4(infrared)) of the instance level, of weight 1.

    Forward:
        student_v, student_i [N_v, D], [N_i, D]: embeddings, of any scale. teacher_v, teacher_i: the teacher's, of unit
        norm, for the same images. prototypes_v, prototypes_i [K, D]: unit class means. Only the student gets gradient.

    Returns:
        ``{"loss", "instance", "class", "kept"}``: the total, both levels without their lam, and the kept share of the
        rows that are masked (the mean of the levels where each has its own), 0..1.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Memory: the student's gradient at both levels, and class profiles. Source: spec dakd 5; Deng et al. 2025.

    Example:
        >>> import torch
        >>> teacher = torch.nn.functional.normalize(torch.arange(16.0).view(4, 4).cos())
        >>> parts = DAKDLoss()(teacher + 0.1, teacher, teacher, teacher, torch.eye(4), torch.eye(4))
        >>> parts["loss"].item() < 1e-9, parts["kept"].item()
        (True, 0.5)
    """

    def __init__(
        self,
        *,
        variant: str = "intended",
        temperatures: Sequence[float] = (2, 3, 4, 5, 6),
        kd_weight: float = 0.9,
        lam_instance: float = 0.5,
        lam_class: float = 0.5,
        class_temp: float = 0.05,
        levels: Sequence[str] = LEVELS,
        temp_weights: Sequence[float] | None = None,
        standardize: str = "zscore",
        ddof: int = 1,
        eps: float = 1e-7,
        class_protos: str = "own",
        mask_rule: str = "percentile",
        mask_q: float = 50.0,
        mask_keep: str | None = None,
        mask_conf: str | None = None,
        mask_modalities: Sequence[str] = ("r",),
        mask_norm: str = "batch",
        mask_threshold: float = 0.95,
        mask_momentum: float = 0.999,
        plain_kd: bool = False,
    ):
        super().__init__()
        _checks.one_of("variant", variant, ("intended", "release"))
        mask_keep = _KEEP[variant] if mask_keep is None else mask_keep
        mask_conf = _CONFIDENCE[variant] if mask_conf is None else mask_conf
        temperatures = _checks.number_list("temperatures", temperatures, _checks.positive)
        if temp_weights is None:
            temp_weights = [1.0] * len(temperatures)
        temp_weights = _checks.number_list("temp_weights", temp_weights, _checks.non_negative, len(temperatures))
        for name, value in (("kd_weight", kd_weight), ("lam_instance", lam_instance), ("lam_class", lam_class)):
            _checks.non_negative(name, value)
        _checks.positive("class_temp", class_temp)
        for name, value, choices in (("levels", levels, LEVELS), ("mask_modalities", mask_modalities, MODALITIES)):
            _checks.some_of(name, value, choices)
        _checks.one_of("standardize", standardize, functional.STANDARDIZE)
        _checks.one_of("ddof", ddof, (0, 1))
        _checks.non_negative("eps", eps)
        _checks.one_of("class_protos", class_protos, ("own", "cross", "both"))
        _checks.one_of("mask_rule", mask_rule, ("percentile", "fixed", "ema", "none"))
        _checks.within("mask_q", mask_q, 0, 100)
        _checks.one_of("mask_keep", mask_keep, ("high", "low"))
        _checks.one_of("mask_conf", mask_conf, ("class", "own"))
        _checks.one_of("mask_norm", mask_norm, ("batch", "kept"))
        _checks.within("mask_threshold", mask_threshold, 0, 1)
        _checks.within("mask_momentum", mask_momentum, 0, 1)
        _checks.flag("plain_kd", plain_kd)
        if plain_kd:
            temperatures, temp_weights, levels, mask_rule = [_PLAIN], [1.0], ("instance",), "none"
            variant, lam_instance, mask_conf = "intended", 1.0, "own"
        self.variant, self.levels = variant, tuple(level for level in LEVELS if level in levels)
        self.lam_instance, self.lam_class, self.class_temp = float(lam_instance), float(lam_class), float(class_temp)
        self.temperatures, self.weights = temperatures, [kd_weight * w for w in temp_weights]
        self.standardize, self.ddof, self.eps, self.class_protos = standardize, ddof, eps, class_protos
        self.mask_rule, self.mask_q, self.mask_conf = mask_rule, float(mask_q), mask_conf
        self.mask_high = mask_keep == "high"
        self.mask_modalities = () if mask_rule == "none" else tuple(mask_modalities)
        self.mask_norm, self.mask_threshold, self.mask_momentum = mask_norm, float(mask_threshold), float(mask_momentum)
        self.fixed, self.masked = self._tables()
        if mask_rule == "ema":
            self.register_buffer("threshold", torch.full((len(LEVELS),), torch.nan))

    def _tables(self) -> tuple[list[float], list[float]]:
        """Factors of each modality and temperature: without the mask, and with it (spec dakd 5.5)."""
        if self.variant == "intended":
            masked = [float(m in self.mask_modalities) for m in MODALITIES for _ in self.temperatures]
            return [1.0 - factor for factor in masked], masked
        both = [float(t in _BOTH_MODALITIES) for t in self.temperatures]
        once = [1.0] * len(both)
        fixed = {"v": both, "r": [1.0 - factor for factor in both]}
        masked = {"v": [0.0] * len(both), "r": once}
        if "v" in self.mask_modalities:
            fixed["v"], masked["v"] = masked["v"], fixed["v"]
        if "r" not in self.mask_modalities:
            fixed["r"], masked["r"] = [a + b for a, b in zip(fixed["r"], once, strict=True)], [0.0] * len(both)
        return fixed["v"] + fixed["r"], masked["v"] + masked["r"]

    def forward(
        self,
        student_v: Tensor,
        student_i: Tensor,
        teacher_v: Tensor,
        teacher_i: Tensor,
        prototypes_v: Tensor,
        prototypes_i: Tensor,
    ) -> dict[str, Tensor]:
        _check_rows(student_v, student_i, teacher_v, teacher_i, prototypes_v, prototypes_i)
        first = student_v.size(0)
        pairs = {"instance": [(torch.cat((student_v, student_i)), torch.cat((teacher_v, teacher_i)))]}
        source = {level: level if self.mask_conf == "own" else "class" for level in self.levels}
        if "class" in (*source, *source.values()):
            pairs["class"] = self._profiles(*pairs["instance"][0], prototypes_v, prototypes_i, first)
        scales, shares, parts = {}, [], {}
        for level, own in source.items():
            if own not in scales:
                mask = self._mask(pairs[own][0][1], first, LEVELS.index(own))
                by_kept, rowwise = self.mask_norm == "kept", self.variant == "intended"
                scales[own], kept = temperature_weights(mask, first, self.fixed, self.masked, rowwise, by_kept)
                shares.append(kept)
            counted = pairs[level] if self.class_protos != "cross" else pairs[level][-1:]
            parts[level] = self._value(counted, scales[own])
        return self._total(parts, shares)

    def _profiles(self, student, teacher, prototypes_v, prototypes_i, first) -> list[tuple[Tensor, Tensor]]:
        """Similarities to the own prototypes, which confidence is read from, and then to the other modality's."""
        own = class_logits(student, teacher, prototypes_v, prototypes_i, first, self.class_temp)
        if self.class_protos == "own":
            return [own]
        return [own, class_logits(student, teacher, prototypes_i, prototypes_v, first, self.class_temp)]

    def _mask(self, teacher: Tensor, first: int, source: int) -> Tensor:
        bounds = {"v": (0, first), "r": (first, teacher.size(0))}
        segments = [bounds[m] for m in self.mask_modalities]
        if not segments:
            return teacher.new_ones(teacher.size(0), dtype=torch.promote_types(teacher.dtype, torch.float32))
        confidence, mask = softmax_confidence(teacher), None
        threshold = self._threshold(confidence, segments, source)
        for begin, end in segments:
            if threshold is None:
                own = percentile_mask(confidence, self.mask_q, self.mask_high, begin, end)
            else:
                own = (confidence >= threshold if self.mask_high else confidence <= threshold).to(confidence.dtype)
                own[:begin], own[end:] = 1, 1
            mask = own if mask is None else mask * own
        return mask

    def _threshold(self, confidence, segments, source):
        if self.mask_rule == "percentile":
            return None
        if self.mask_rule == "fixed":
            return self.mask_threshold
        if self.training:
            mean = torch.cat([confidence[begin:end] for begin, end in segments]).mean()
            before = self.threshold[source]
            after = torch.where(before.isnan(), mean, torch.lerp(mean.to(before), before, self.mask_momentum))
            # A batch with a bad row is not averaged in: the threshold would never recover from a NaN.
            self.threshold[source] = torch.where(mean.isfinite(), after.to(before), before)
        return self.threshold[source]

    def _value(self, pairs, scale) -> Tensor:
        """Sum over rows and temperatures, the mean over pairs."""
        options = (self.temperatures, self.weights, self.standardize, self.ddof, self.eps)
        values = [scaled_standardized_kl(*pair, scale, *options).sum() for pair in pairs]
        return values[0] if len(values) == 1 else 0.5 * (values[0] + values[1])

    def _total(self, parts, shares) -> dict[str, Tensor]:
        kept = shares[0] if len(shares) == 1 else torch.lerp(*shares, 0.5)
        if len(parts) == 2:
            loss = torch.add(self.lam_instance * parts["instance"], parts["class"], alpha=self.lam_class)
            return {"loss": loss, **parts, "kept": kept}
        ((level, value),) = parts.items()
        absent = dict.fromkeys(LEVELS, torch.zeros_like(kept))
        weight = self.lam_instance if level == "instance" else self.lam_class
        return {"loss": weight * value, **(absent | parts), "kept": kept}

    def extra_repr(self) -> str:
        return f"variant={self.variant!r}, levels={self.levels}, temperatures={tuple(self.temperatures)}"


def _check_rows(student_v, student_i, teacher_v, teacher_i, prototypes_v, prototypes_i):
    _checks.rows("student_v", student_v)
    for name, value in (("student_i", student_i), ("teacher_v", teacher_v), ("teacher_i", teacher_i)):
        _checks.rows(name, value)
        _checks.same_columns(name, value, "student_v", student_v)
    _checks.same_shape("teacher_v", teacher_v, "student_v", student_v)
    _checks.same_shape("teacher_i", teacher_i, "student_i", student_i)
    _checks.rows("prototypes_v", prototypes_v)
    _checks.rows("prototypes_i", prototypes_i)
    _checks.same_shape("prototypes_i", prototypes_i, "prototypes_v", prototypes_v)
    if prototypes_v.size(1) != student_v.size(1):
        expected = f"expected {student_v.size(1)} columns as in student_v"
        raise ValueError(f"prototypes_v: {expected}, got {list(prototypes_v.shape)}")
    _checks.same_device("prototypes_v", prototypes_v, "student_v", student_v)
