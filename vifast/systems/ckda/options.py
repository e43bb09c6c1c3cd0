"""Options of CKDA, and what its two presets say where the paper and the released code differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vifast import _checks
from vifast.losses.ckda import KAPPA, TERMS

#: Values of the options that are None, by preset; the numbers are those of spec ckda 13.
PRESETS = {
    "clean": {
        "kappa": KAPPA["clean"],  # R1
        "cka_student_feature": "post_neck",  # R2
        "regdb_ir_proto": "infrared",  # R4
        "mcp_in_eval": "instance",  # R7
        "carry_classifier": False,  # R8
        "merge_counters": False,  # R9
    },
    "release": {
        "kappa": KAPPA["release"],
        "cka_student_feature": "pre_neck",
        "regdb_ir_proto": "visible",
        "mcp_in_eval": "running",
        "carry_classifier": True,
        "merge_counters": True,
    },
}


@dataclass(frozen=True, kw_only=True)
class CKDAOptions:
    """Hyper-parameters of a stage; defaults are the release's, and those that are None the preset's, see `PRESETS`.

    Args:
        preset: ``"clean"``, or ``"release"`` with all that the released code does.
        previous: folder of the run of the stage before, with its ``final/``: initial weights, teacher and prototypes.
        weights: a timm checkpoint of the backbone, for a first stage.
        backbone, image_size, stride, dropout, drop_path: see `vifast.models.ViT`; ``image_size`` None is the dataset's.
        specific, common, prompt_dropout: of the prompts, see `vifast.nn.ModalityPrompts`; 0 and 0 for none.
        terms: the parts of the loss that count, see `vifast.losses.CKDALoss`; also alpha, beta, mu, tau, kappa (R1),
            margin, omega and nu.
        symmetric: R11, anchors of the second center-to-sample term: infrared samples in place of visible centers.
        prompt_noise: R10, the prompt term sees the student's prompts with dropout and the batch's statistics.
        cka_student_feature: R2, the student's side of the alignment, ``"pre_neck"`` or ``"post_neck"``; the teacher
            and the prototypes are always after it.
        merge: old and new weights after the last epoch: ``"fixed"`` shares, ``"adaptive"`` (of the change in the
            training images' affinities, as LSTKC), or ``"off"``.
        old_weight: lambda, the share of the old weights where they are fixed.
        carry_classifier: R8, start from the old classifier, and merge with it, if it has as many identities.
        merge_counters: R9, merge integers, too, and cut the result.
        regdb_ir_proto: R4, RegDB's infrared prototypes of the ``"infrared"`` images, or of the ``"visible"`` ones.
        proto_history: R6, leave the prototypes of this stage (``"last"``), or of ``"all"`` up to it.
        mcp_in_eval: R7, instance normalisation in evaluation, by ``"running"`` statistics or each ``"instance"``'s own.
    """

    preset: Literal["clean", "release"] = "clean"
    previous: str | None = None
    weights: str | None = None
    backbone: str = "vit_base"
    image_size: tuple[int, int] | None = None
    stride: int = 12
    dropout: float = 0.03
    drop_path: float = 0.1
    specific: int = 16
    common: int = 8
    prompt_dropout: float = 0.1
    terms: tuple[str, ...] = TERMS
    alpha: float = 1.0
    beta: float = 1.0
    mu: float = 0.5
    tau: float = 0.1
    kappa: float | None = None
    margin: float = 0.1
    omega: float = 1.0
    nu: float = 0.5
    symmetric: bool = False
    prompt_noise: bool = True
    cka_student_feature: Literal["pre_neck", "post_neck"] | None = None
    merge: Literal["fixed", "adaptive", "off"] = "fixed"
    old_weight: float = 0.7
    carry_classifier: bool | None = None
    merge_counters: bool | None = None
    regdb_ir_proto: Literal["infrared", "visible"] | None = None
    proto_history: Literal["last", "all"] = "last"
    mcp_in_eval: Literal["running", "instance"] | None = None

    def __post_init__(self):
        _checks.one_of("preset", self.preset, tuple(PRESETS))
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, choices in _CHOICES.items():
            _checks.one_of(name, getattr(self, name), choices)
        _checks.within("old_weight", self.old_weight, 0, 1)


_CHOICES = {
    "cka_student_feature": ("pre_neck", "post_neck"),
    "merge": ("fixed", "adaptive", "off"),
    "regdb_ir_proto": ("infrared", "visible"),
    "proto_history": ("last", "all"),
    "mcp_in_eval": ("running", "instance"),
}
