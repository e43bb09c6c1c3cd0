from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vifast import _checks, functional
from vifast.functional.standardized_kl import scaled_standardized_kl
from vifast.kernels.class_logits import class_logits
from vifast.kernels.confidence_weights import RULES, confidence_weights
from vifast.kernels.standardized_kl import standardized
from vifast.losses import relations
from vifast.losses.class_threshold import ClassThreshold
from vifast.losses.contrast_memory import NEGATIVES, ContrastMemory
from vifast.losses.dakd_supervised import supervised_terms

LEVELS = ("instance", "class")
GRAMS = {"batch_gram": relations.batch_gram, "class_gram": relations.class_gram}
# Terms in place of the instance divergence: weight, rows [N].
ROWS = {
    "rkd_d": (25.0, relations.rkd_distance),
    "rkd_a": (50.0, relations.rkd_angle),
    "sp": (1.0, relations.similarity_preserving),
}
INSTANCE_MODES = ("kl", "relation_kl", *ROWS, "ickd", "crd")
ALL_LEVELS = (*LEVELS, *GRAMS)
MASK_RULES = (*RULES, "freematch")
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
        lam_instance, lam_class, lam_batch_gram, lam_class_gram: at least 0, weights of the levels in the total.
        class_temp: above 0.
        levels: those that count, of ``"instance"`` and ``"class"``, the other's part is 0; and of ``"batch_gram"`` and
            ``"class_gram"``: kd_weight sum_T w_T times that term of :mod:`vifast.losses.relations`, of probabilities in
            both modalities' class profiles together, rows weighted by keep_i.
        temp_weights: one number at least 0 per temperature; default 1 each.
        standardize, ddof, eps: see :func:`vifast.functional.standardized_kl`.
        class_protos: ``"own"`` prototypes of the row's modality, the other's (``"cross"``), or the mean of ``"both"``.
        mask_rule: ``"percentile"`` of the batch, ``"fixed"`` threshold, ``"ema"`` of the batches' mean confidence
            (updated in training), ``"freematch"``, that threshold by class
            (:class:`vifast.losses.class_threshold.ClassThreshold`), or ``"none"``.
        mask_q: 0..100, the percentile.
        mask_keep: ``"high"`` or ``"low"`` confidence is kept; default ``"high"``, of ``"release"`` ``"low"``.
        mask_conf: confidence of the ``"class"`` profile at both levels, or each level's ``"own"``; default
            ``"class"``, of ``"release"`` ``"own"``.
        mask_modalities: rows that are masked at all, of ``"v"`` and ``"r"``.
        mask_norm: the masked sum is divided by the rows of the ``"batch"`` or by those ``"kept"``.
        mask_threshold: 0..1, of the fixed rule.
        mask_momentum: 0..1, of the ema and freematch rules, which start at the means of the first batch.
        num_classes: K, where the rule is freematch.
        mask_require_correct: of the masked rows only those are kept whose class profile is largest at their label.
        temperature_fn: called with ``step``, gives the temperatures of the batch in place of ``temperatures``, as many.
        instance_mode: ``"kl"``, or ``"relation_kl"``, the rows of :func:`vifast.functional.relation_alignment` of both
            modalities together at ``relation_temp``, in place of the sum over temperatures. Or likewise, of
            :mod:`vifast.losses.relations`, ``"rkd_d"`` distances (times 25), ``"rkd_a"`` angles (times 50), ``"sp"``
            similarities or ``"ickd"``, the mean over channels, whose rows keep_i weighs. Or ``"crd"``, contrast with
            the teacher's rows of earlier batches (:class:`vifast.losses.contrast_memory.ContrastMemory`).
        relation_temp: above 0.
        contrast_temp, contrast_negatives, memory_size, memory_dim: of ``"crd"``; memory_dim is D.
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
        rows that are masked (the mean of the levels where each has its own), 0..1. And ``"batch_gram"``,
        ``"class_gram"``, ``"id"``, ``"tri"``, ``"nce"``, without their lam, where they are wanted.

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
        lam_batch_gram: float = 0.5,
        lam_class_gram: float = 0.5,
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
        num_classes: int | None = None,
        temperature_fn: Callable[[int], Sequence[float]] | None = None,
        instance_mode: str = "kl",
        relation_temp: float = 0.1,
        contrast_temp: float = 0.07,
        contrast_negatives: str = "class",
        memory_size: int = 4096,
        memory_dim: int = 2048,
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
        lam = {"instance": lam_instance, "class": lam_class, "batch_gram": lam_batch_gram, "class_gram": lam_class_gram}
        supervised = {"id": lam_id, "tri": lam_tri, "nce": lam_nce}
        _checks.non_negative("kd_weight", kd_weight)
        for name, value in {**lam, **supervised}.items():
            _checks.non_negative(f"lam_{name}", value)
        for name, value in {"class": class_temp, "relation": relation_temp, "contrast": contrast_temp}.items():
            _checks.positive(f"{name}_temp", value)
        _checks.one_of("contrast_negatives", contrast_negatives, NEGATIVES)
        for name, value in (("memory_size", memory_size), ("memory_dim", memory_dim)):
            _checks.count(name, value)
        for name, value, choices in (("levels", levels, ALL_LEVELS), ("mask_modalities", mask_modalities, MODALITIES)):
            _checks.some_of(name, value, choices)
        _checks.one_of("standardize", standardize, functional.STANDARDIZE)
        _checks.one_of("ddof", ddof, (0, 1))
        _checks.non_negative("eps", eps)
        _checks.one_of("class_protos", class_protos, ("own", "cross", "both"))
        _checks.one_of("mask_rule", mask_rule, MASK_RULES)
        _checks.within("mask_q", mask_q, 0, 100)
        _checks.one_of("mask_keep", mask_keep, ("high", "low"))
        _checks.one_of("mask_conf", mask_conf, ("class", "own"))
        _checks.one_of("mask_norm", mask_norm, ("batch", "kept"))
        _checks.within("mask_threshold", mask_threshold, 0, 1)
        _checks.within("mask_momentum", mask_momentum, 0, 1)
        _checks.one_of("instance_mode", instance_mode, INSTANCE_MODES)
        _checks.one_of("class_mode", class_mode, ("kl", "dkd"))
        for name, value in (("mask_require_correct", mask_require_correct), ("plain_kd", plain_kd)):
            _checks.flag(name, value)
        if temperature_fn is not None and not callable(temperature_fn):
            raise TypeError(f"temperature_fn: expected a function of the step, got {type(temperature_fn).__name__}")
        if plain_kd:
            temperatures, temp_weights, levels, mask_rule = [_PLAIN], [1.0], ("instance",), "none"
            variant, lam["instance"], mask_conf, instance_mode = "intended", 1.0, "own", "kl"
            mask_require_correct, temperature_fn = False, None
        self.variant, self.levels = variant, tuple(level for level in ALL_LEVELS if level in levels)
        self.lam, self.class_temp = {name: float(value) for name, value in lam.items()}, float(class_temp)
        self.temperatures, self.weights = temperatures, [kd_weight * w for w in temp_weights]
        self.kd_weight, self.modes = float(kd_weight), dict.fromkeys(GRAMS, "kl")
        self.modes |= {"instance": instance_mode, "class": class_mode}
        self.temperature_fn, self.relation_temp = temperature_fn, float(relation_temp)
        self.standardize, self.ddof, self.eps, self.class_protos = standardize, ddof, eps, class_protos
        self.mask_rule, self.mask_conf, self.mask_norm = mask_rule, mask_conf, mask_norm
        self.mask_high, self.mask_require_correct = mask_keep == "high", mask_require_correct
        self.mask_level = {"percentile": mask_q, "fixed": mask_threshold, "ema": mask_momentum}.get(mask_rule, 0)
        self.mask_modalities = tuple(mask_modalities) if mask_rule != "none" or mask_require_correct else ()
        self.supervised = {name: float(weight) for name, weight in supervised.items() if weight > 0}
        masked = [float(m in self.mask_modalities) for m in MODALITIES]
        self.row_tables = [1.0 - factor for factor in masked], masked
        self.tables = self._tables()
        if mask_rule == "ema":
            self.register_buffer("threshold", torch.full((len(LEVELS),), torch.nan))
        if mask_rule == "freematch":
            if mask_conf != "class":
                raise ValueError(f"mask_conf: expected 'class' for freematch, got {mask_conf!r}")
            self.sure = ClassThreshold(num_classes, momentum=mask_momentum, high=self.mask_high)
        if instance_mode == "crd":
            options = {"temperature": contrast_temp, "negatives": contrast_negatives}
            self.memory = ContrastMemory(memory_size, memory_dim, **options)

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
        self._check_state(student_v, prototypes_v)
        labels = self._labels(student_v, student_i, labels_v, labels_i)
        temperatures = self._temperatures(step)
        supervised = supervised_terms(self.supervised, student_v, student_i, labels, logits_v, logits_i)
        first = student_v.size(0)
        pairs = {"instance": [(torch.cat((student_v, student_i)), torch.cat((teacher_v, teacher_i)))]}
        own_masks = LEVELS if self.mask_conf == "own" else ()
        source = {level: level if level in own_masks else "class" for level in self.levels}
        picky = self.mask_require_correct or self.mask_rule == "freematch"
        if picky or set(source) | set(source.values()) != {"instance"}:
            pairs["class"] = self._profiles(*pairs["instance"][0], prototypes_v, prototypes_i, first)
        allowed = self._allowed(pairs["class"][0][1], labels, first) if picky else None
        scales, shares, parts = {}, {}, {}
        for level, own in source.items():
            rows = self.modes[level] != "kl"
            if (own, rows) not in scales:
                scales[own, rows], shares[own] = self._scale(own, pairs[own][0][1], allowed, first, rows)
            counted = pairs["instance" if level == "instance" else "class"]
            counted = counted if self.class_protos != "cross" else counted[-1:]
            parts[level] = self._value(level, counted, scales[own, rows], temperatures, labels)
        return self._total(parts, list(shares.values()), supervised)

    def _profiles(self, student, teacher, prototypes_v, prototypes_i, first) -> list[tuple[Tensor, Tensor]]:
        """Similarities to the own prototypes, which confidence is read from, and then to the other modality's."""
        own = class_logits(student, teacher, prototypes_v, prototypes_i, first, self.class_temp)
        if self.class_protos == "own":
            return [own]
        return [own, class_logits(student, teacher, prototypes_i, prototypes_v, first, self.class_temp)]

    def _allowed(self, teacher: Tensor, labels, first: int) -> Tensor:
        """Which rows may be kept, whatever the rule of the batch says."""
        allowed = torch.ones(len(teacher), dtype=torch.bool, device=teacher.device)
        if self.mask_rule == "freematch":
            visible = torch.arange(len(teacher), device=teacher.device) < first
            masked_v, masked_i = (m in self.mask_modalities for m in MODALITIES)
            allowed = self.sure(teacher, (visible & masked_v) | (~visible & masked_i))
        if self.mask_require_correct:
            allowed = allowed & (teacher.argmax(1) == torch.cat(labels))
        return allowed

    def _scale(self, source: str, teacher: Tensor, allowed: Tensor | None, first: int, rows: bool):
        """Factors of every row and temperature, or of every row, and the kept share."""
        before, level, place = None, self.mask_level, LEVELS.index(source)
        rule = self.mask_rule if self.mask_rule in RULES else "none"  # what is left of it is in allowed
        if self.mask_rule == "ema":
            before, level = self.threshold[place].float(), level if self.training else 1.0
        tables, rowwise = self.row_tables if rows else self.tables, self.variant == "intended"
        options = (first, rule, float(level), self.mask_high, *tables, rowwise, self.mask_norm == "kept")
        scale, kept, threshold = confidence_weights(teacher, allowed, before, *options)
        if self.mask_rule == "ema" and self.training:
            self.threshold[place] = threshold
        return scale, kept

    def _value(self, level: str, pairs, scale: Tensor, temperatures: list[float], labels) -> Tensor:
        """Sum over rows and temperatures, the mean over pairs."""
        mode, labels = self.modes[level], None if labels is None else torch.cat(labels)
        if level in GRAMS:
            values = [self._gram(level, *pair, scale, temperatures) for pair in pairs]
        elif mode == "kl":
            options = (temperatures, self.weights, self.standardize, self.ddof, self.eps)
            values = [scaled_standardized_kl(*pair, scale, *options).sum() for pair in pairs]
        else:
            values = [self.kd_weight * self._of_rows(mode, *pair, scale.squeeze(1), labels) for pair in pairs]
        return values[0] if len(values) == 1 else 0.5 * (values[0] + values[1])

    def _of_rows(self, mode: str, student: Tensor, teacher: Tensor, scale: Tensor, labels) -> Tensor:
        """A term without temperatures, over rows that add up to means of modalities."""
        if mode == "relation_kl":
            keep = scale * len(scale)  # relation_alignment divides by the rows
            return functional.relation_alignment(student, teacher, temperature=self.relation_temp, keep=keep)
        if mode == "ickd":
            return relations.channel_correlation(student, teacher, scale)
        if mode == "crd":
            return (scale * self.memory(student, teacher, labels)).sum()
        if mode == "dkd":
            return (scale * functional.decoupled_kl(student, teacher, labels, reduction="none")).sum()
        weight, rows = ROWS[mode]
        return weight * (scale * rows(student, teacher)).sum()

    def _gram(self, level: str, student: Tensor, teacher: Tensor, scale: Tensor, temperatures: list[float]) -> Tensor:
        """Sum over temperatures; of modalities of one size a kept row weighs 1."""
        logits = [x.double() for x in (student, teacher)]
        if self.standardize == "zscore" and student.size(1) > 0:
            logits = [standardized(x, self.ddof, self.eps)[0] for x in logits]
        keep = 0.5 * len(scale) * scale
        sets = zip(temperatures, self.weights, keep.unbind(1), strict=True)
        return sum(w * GRAMS[level](*((x / t).softmax(1) for x in logits), k) for t, w, k in sets).to(scale.dtype)

    def _check_state(self, student_v: Tensor, prototypes_v: Tensor) -> None:
        if self.mask_rule == "freematch" and len(prototypes_v) != len(self.sure.share):
            expected = f"expected {len(self.sure.share)} rows as num_classes"
            raise ValueError(f"prototypes_v: {expected}, got {list(prototypes_v.shape)}")
        if self.modes["instance"] == "crd" and student_v.size(1) != self.memory.rows.size(1):
            expected = f"expected {self.memory.rows.size(1)} columns as memory_dim"
            raise ValueError(f"student_v: {expected}, got {list(student_v.shape)}")

    def _labels(self, student_v, student_i, labels_v, labels_i) -> tuple[Tensor, Tensor] | None:
        need = [f"lam_{name}" for name in self.supervised]
        need += ["mask_require_correct"] * self.mask_require_correct
        need += ["class_mode"] * ("class" in self.levels and self.modes["class"] == "dkd")
        contrast = "instance" in self.levels and self.modes["instance"] == "crd"
        need += ["instance_mode"] * (contrast and self.memory.negatives == "class")
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

    def _total(self, parts, shares, supervised) -> dict[str, Tensor]:
        kept = shares[0] if len(shares) == 1 else torch.lerp(*shares, 0.5)
        (first, value), *rest = parts.items()
        loss = self.lam[first] * value
        for level, value in rest:
            loss = torch.add(loss, value, alpha=self.lam[level])
        parts = {level: torch.zeros_like(kept) for level in LEVELS if level not in parts} | parts
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
