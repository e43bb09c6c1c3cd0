from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vifast import _checks, functional
from vifast.functional.standardized_kl import scaled_standardized_kl
from vifast.kernels.class_logits import class_logits
from vifast.kernels.confidence_weights import RULES, confidence_weights

LEVELS = ("instance", "class")
MODALITIES = ("v", "r")
_KEEP = {"intended": "high", "release": "low"}
_CONFIDENCE = {"intended": "class", "release": "own"}
_BOTH_MODALITIES = (3, 4, 5)  # temperatures that the release also gives to visible rows
_PLAIN = 4.0
_SMOOTHING, _MARGIN, _NCE_TEMPERATURE = 0.1, 0.3, 0.05  # of the supervised terms


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
        mask_require_correct: of the masked rows only those are kept whose class profile is largest at their label.
        temperature_fn: called with ``step``, gives the temperatures of the batch in place of ``temperatures``, as many.
        instance_mode: ``"kl"``, or ``"relation_kl"``, the rows of :func:`vifast.functional.relation_alignment` of both
            modalities together at ``relation_temp``, in place of the sum over temperatures.
        relation_temp: above 0.
        class_mode: ``"kl"``, or ``"dkd"``, the rows of :func:`vifast.functional.decoupled_kl`, likewise.
        lam_id, lam_tri, lam_nce: at least 0, weights of terms with labels: the mean cross-entropy of both modalities'
            logits, smoothed by 0.1; the triplets of visible anchors mined among infrared rows, of margin 0.3; the same
            anchors' supervised InfoNCE at 0.05, less its least value (:func:`vifast.functional.neighbor_loss`).
        plain_kd: the ablation kd_weight (mean D_4(visible) + mean D_4(infrared)) of the instance level, of weight 1.

    Forward:
        student_v, student_i [N_v, D], [N_i, D]: embeddings, of any scale. teacher_v, teacher_i: the teacher's, of unit
        norm, for the same images. prototypes_v, prototypes_i [K, D]: unit class means. Only the student gets gradient.
        By keyword, where an option asks for them: labels_v, labels_i [N_v], [N_i]: identities as numbers of prototypes;
        logits_v, logits_i: [N_v, C], [N_i, C] of the student's identity heads; step: what ``temperature_fn`` is given.

    Returns:
        ``{"loss", "instance", "class", "kept"}``: the total, both levels without their lam, and the kept share of the
        rows that are masked (the mean of the levels where each has its own), 0..1. And ``"id"``, ``"tri"``, ``"nce"``,
        without their lam, where that is not 0.

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
        mask_require_correct: bool = False,
        temperature_fn: Callable[[int], Sequence[float]] | None = None,
        instance_mode: str = "kl",
        relation_temp: float = 0.1,
        class_mode: str = "kl",
        lam_id: float = 0,
        lam_tri: float = 0,
        lam_nce: float = 0,
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
        lam = {"lam_instance": lam_instance, "lam_class": lam_class}
        lam |= {"lam_id": lam_id, "lam_tri": lam_tri, "lam_nce": lam_nce}
        for name, value in {"kd_weight": kd_weight, **lam}.items():
            _checks.non_negative(name, value)
        for name, value in (("class_temp", class_temp), ("relation_temp", relation_temp)):
            _checks.positive(name, value)
        for name, value, choices in (("levels", levels, LEVELS), ("mask_modalities", mask_modalities, MODALITIES)):
            _checks.some_of(name, value, choices)
        _checks.one_of("standardize", standardize, functional.STANDARDIZE)
        _checks.one_of("ddof", ddof, (0, 1))
        _checks.non_negative("eps", eps)
        _checks.one_of("class_protos", class_protos, ("own", "cross", "both"))
        _checks.one_of("mask_rule", mask_rule, RULES)
        _checks.within("mask_q", mask_q, 0, 100)
        _checks.one_of("mask_keep", mask_keep, ("high", "low"))
        _checks.one_of("mask_conf", mask_conf, ("class", "own"))
        _checks.one_of("mask_norm", mask_norm, ("batch", "kept"))
        _checks.within("mask_threshold", mask_threshold, 0, 1)
        _checks.within("mask_momentum", mask_momentum, 0, 1)
        _checks.one_of("instance_mode", instance_mode, ("kl", "relation_kl"))
        _checks.one_of("class_mode", class_mode, ("kl", "dkd"))
        for name, value in (("mask_require_correct", mask_require_correct), ("plain_kd", plain_kd)):
            _checks.flag(name, value)
        if temperature_fn is not None and not callable(temperature_fn):
            raise TypeError(f"temperature_fn: expected a function of the step, got {type(temperature_fn).__name__}")
        if plain_kd:
            temperatures, temp_weights, levels, mask_rule = [_PLAIN], [1.0], ("instance",), "none"
            variant, lam_instance, mask_conf, instance_mode = "intended", 1.0, "own", "kl"
            mask_require_correct, temperature_fn = False, None
        self.variant, self.levels = variant, tuple(level for level in LEVELS if level in levels)
        self.lam_instance, self.lam_class, self.class_temp = float(lam_instance), float(lam_class), float(class_temp)
        self.temperatures, self.weights = temperatures, [kd_weight * w for w in temp_weights]
        self.kd_weight, self.modes = float(kd_weight), {"instance": instance_mode, "class": class_mode}
        self.temperature_fn, self.relation_temp = temperature_fn, float(relation_temp)
        self.standardize, self.ddof, self.eps, self.class_protos = standardize, ddof, eps, class_protos
        self.mask_rule, self.mask_conf, self.mask_norm = mask_rule, mask_conf, mask_norm
        self.mask_high, self.mask_require_correct = mask_keep == "high", mask_require_correct
        self.mask_level = {"percentile": mask_q, "fixed": mask_threshold, "ema": mask_momentum, "none": 0}[mask_rule]
        self.mask_modalities = tuple(mask_modalities) if mask_rule != "none" or mask_require_correct else ()
        supervised = {"id": lam_id, "tri": lam_tri, "nce": lam_nce}
        self.supervised = {name: float(weight) for name, weight in supervised.items() if weight > 0}
        masked = [float(m in self.mask_modalities) for m in MODALITIES]
        self.row_tables = [1.0 - factor for factor in masked], masked
        self.tables = self._tables()
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
        *,
        labels_v: Tensor | None = None,
        labels_i: Tensor | None = None,
        logits_v: Tensor | None = None,
        logits_i: Tensor | None = None,
        step: int | None = None,
    ) -> dict[str, Tensor]:
        _check_rows(student_v, student_i, teacher_v, teacher_i, prototypes_v, prototypes_i)
        labels = self._labels(student_v, student_i, labels_v, labels_i)
        temperatures = self._temperatures(step)
        supervised = self._supervised(student_v, student_i, labels, logits_v, logits_i)
        first = student_v.size(0)
        pairs = {"instance": [(torch.cat((student_v, student_i)), torch.cat((teacher_v, teacher_i)))]}
        source = {level: level if self.mask_conf == "own" else "class" for level in self.levels}
        if self.mask_require_correct or "class" in (*source, *source.values()):
            pairs["class"] = self._profiles(*pairs["instance"][0], prototypes_v, prototypes_i, first)
        allowed = None
        if self.mask_require_correct:
            allowed = pairs["class"][0][1].argmax(1) == torch.cat(labels)
        scales, shares, parts = {}, {}, {}
        for level, own in source.items():
            rows = self.modes[level] != "kl"
            if (own, rows) not in scales:
                scales[own, rows], shares[own] = self._scale(own, pairs[own][0][1], allowed, first, rows)
            counted = pairs[level] if self.class_protos != "cross" else pairs[level][-1:]
            parts[level] = self._value(level, counted, scales[own, rows], temperatures, labels)
        return self._total(parts, list(shares.values()), supervised)

    def _profiles(self, student, teacher, prototypes_v, prototypes_i, first) -> list[tuple[Tensor, Tensor]]:
        """Similarities to the own prototypes, which confidence is read from, and then to the other modality's."""
        own = class_logits(student, teacher, prototypes_v, prototypes_i, first, self.class_temp)
        if self.class_protos == "own":
            return [own]
        return [own, class_logits(student, teacher, prototypes_i, prototypes_v, first, self.class_temp)]

    def _scale(self, source: str, teacher: Tensor, allowed: Tensor | None, first: int, rows: bool):
        """Factors of every row and temperature, or of every row, and the kept share."""
        before, level, place = None, self.mask_level, LEVELS.index(source)
        if self.mask_rule == "ema":
            before, level = self.threshold[place].float(), level if self.training else 1.0
        tables, rowwise = self.row_tables if rows else self.tables, self.variant == "intended"
        options = (first, self.mask_rule, float(level), self.mask_high, *tables, rowwise, self.mask_norm == "kept")
        scale, kept, threshold = confidence_weights(teacher, allowed, before, *options)
        if self.mask_rule == "ema" and self.training:
            self.threshold[place] = threshold
        return scale, kept

    def _value(self, level: str, pairs, scale: Tensor, temperatures: list[float], labels) -> Tensor:
        """Sum over rows and temperatures, the mean over pairs."""
        if self.modes[level] == "relation_kl":
            keep = scale.squeeze(1) * len(scale)  # relation_alignment divides by the rows
            return self.kd_weight * functional.relation_alignment(*pairs[0], temperature=self.relation_temp, keep=keep)
        if self.modes[level] == "dkd":
            rows = (functional.decoupled_kl(*pair, torch.cat(labels), reduction="none") for pair in pairs)
            values = [self.kd_weight * (scale.squeeze(1) * row).sum() for row in rows]
        else:
            options = (temperatures, self.weights, self.standardize, self.ddof, self.eps)
            values = [scaled_standardized_kl(*pair, scale, *options).sum() for pair in pairs]
        return values[0] if len(values) == 1 else 0.5 * (values[0] + values[1])

    def _labels(self, student_v, student_i, labels_v, labels_i) -> tuple[Tensor, Tensor] | None:
        need = [f"lam_{name}" for name in self.supervised]
        need += ["mask_require_correct"] * self.mask_require_correct
        need += ["class_mode"] * ("class" in self.levels and self.modes["class"] == "dkd")
        if not need:
            return None
        rows = {"labels_v": (labels_v, "student_v", student_v), "labels_i": (labels_i, "student_i", student_i)}
        for name, (value, *_) in rows.items():
            if value is None:
                raise ValueError(f"{name}: expected a tensor for {need[0]}, got None")
        return tuple(_checks.labels(name, *value) for name, value in rows.items())

    def _temperatures(self, step: int | None) -> list[float]:
        if self.temperature_fn is None:
            return self.temperatures
        if step is None:
            raise ValueError("step: expected a number for temperature_fn, got None")
        now = self.temperature_fn(step)
        return _checks.number_list("temperature_fn", now, _checks.positive, len(self.temperatures))

    def _supervised(self, student_v, student_i, labels, logits_v, logits_i) -> dict[str, Tensor]:
        terms = {}
        if "id" in self.supervised:
            heads = {"logits_v": (logits_v, student_v, labels[0]), "logits_i": (logits_i, student_i, labels[1])}
            terms["id"] = 0.5 * sum(_cross_entropy(name, *head) for name, head in heads.items())
        if labels is not None:
            options = {"reference": student_i, "reference_labels": labels[1]}
        if "tri" in self.supervised:
            terms["tri"] = functional.triplet_loss(student_v, labels[0], margin=_MARGIN, **options)
        if "nce" in self.supervised:
            options |= {"metric": "cosine", "temperature": _NCE_TEMPERATURE}
            terms["nce"] = functional.neighbor_loss(student_v, labels[0], **options)
        return terms

    def _total(self, parts, shares, supervised) -> dict[str, Tensor]:
        kept = shares[0] if len(shares) == 1 else torch.lerp(*shares, 0.5)
        if len(parts) == 2:
            loss = torch.add(self.lam_instance * parts["instance"], parts["class"], alpha=self.lam_class)
        else:
            ((level, value),) = parts.items()
            loss = (self.lam_instance if level == "instance" else self.lam_class) * value
            parts = dict.fromkeys(LEVELS, torch.zeros_like(kept)) | parts
        for name, value in supervised.items():
            loss = loss + self.supervised[name] * value
        return {"loss": loss, **parts, "kept": kept, **supervised}

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


def _cross_entropy(name: str, logits: Tensor | None, student: Tensor, labels: Tensor) -> Tensor:
    """Mean of a modality in float32; 0 of no rows."""
    if logits is None:
        raise ValueError(f"{name}: expected a tensor for lam_id, got None")
    _checks.rows(name, logits)
    _checks.same_rows(name, logits, "student" + name[-2:], student)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, labels, reduction="sum", label_smoothing=_SMOOTHING) / max(len(logits), 1)
