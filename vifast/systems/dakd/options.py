"""What of DAKD may be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vifast.systems.embedding import EmbeddingOptions


@dataclass(frozen=True, kw_only=True)
class DAKDOptions(EmbeddingOptions):
    """Hyper-parameters of network, teacher and objective; defaults are the release's but for ``variant``.

    The student starts from ``weights``, or with ``student_init: teacher`` from the teacher's. A ``frozen`` teacher
    stays what it is; an ``ema`` one, of the student's network, follows the student by ``1 - teacher_momentum`` a step.
    It sees the tensors of the student (``shared``), or ``weak`` ones, the same images cropped and flipped alone. With
    ``exits`` there is no teacher but the network itself, and no objective of DAKD: see `DAKDExits`, whose weights and
    temperature are the ``exit_`` ones.
    ``image_size`` is that of the images; None takes it from elsewhere in a configuration. ``proto_refresh`` makes
    prototypes before the first epoch (``never`` again), or before each. ``bn_batches`` are what batch normalisations of
    the student take their statistics of; these move ``bn_update_repeats`` times a step (2: as in the release, which
    runs every step twice). From ``variant`` on they are the objective's, see :class:`vifast.losses.DAKDLoss`.
    """

    image_size: tuple[int, int] | None = None
    student_init: Literal["imagenet", "teacher"] = "imagenet"
    teacher_mode: Literal["frozen", "ema", "exits"] = "frozen"
    teacher_view: Literal["shared", "weak"] = "shared"
    teacher_momentum: float = 0.999
    proto_refresh: Literal["never", "epoch"] = "never"
    bn_batches: Literal["per_modality", "joint"] = "per_modality"
    bn_update_repeats: int = 1
    exit_share: float = 0.3
    exit_temp: float = 3.0
    exit_hint: float = 0.5
    variant: Literal["intended", "release"] = "intended"
    levels: tuple[str, ...] = ("instance", "class")
    plain_kd: bool = False
    temperatures: tuple[float, ...] = (2, 3, 4, 5, 6)
    temp_weights: tuple[float, ...] | None = None
    kd_weight: float = 0.9
    lam_instance: float = 0.5
    lam_class: float = 0.5
    lam_batch_gram: float = 0.5
    lam_class_gram: float = 0.5
    lam_id: float = 0
    lam_tri: float = 0
    lam_nce: float = 0
    class_temp: float = 0.05
    class_protos: str = "own"
    standardize: str = "zscore"
    ddof: int = 1
    eps: float = 1e-7
    mask_rule: str = "percentile"
    mask_q: float = 50.0
    mask_keep: str | None = None
    mask_conf: str | None = None
    mask_modalities: tuple[str, ...] = ("r",)
    mask_norm: str = "batch"
    mask_threshold: float = 0.95
    mask_momentum: float = 0.999
    mask_require_correct: bool = False
    instance_mode: str = "kl"
    relation_temp: float = 0.1
    contrast_temp: float = 0.07
    contrast_negatives: str = "class"
    memory_size: int = 4096
    class_mode: str = "kl"

    @property
    def bn_splits(self) -> int:
        """Parts of a batch, visible images first, that batch normalisations of the student tell apart."""
        return {"per_modality": 2, "joint": 1}[self.bn_batches]
