"""CKDA: cross-modality knowledge disentanglement and alignment (Cui, Zhou and Peng 2026), one stage of it."""

from vifast.systems.ckda.network import CKDANetwork
from vifast.systems.ckda.options import PRESETS, CKDAOptions
from vifast.systems.ckda.system import CKDA

__all__ = ["CKDA", "PRESETS", "CKDANetwork", "CKDAOptions"]
