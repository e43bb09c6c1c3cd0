"""MCE: memory-based contrastive embedding, which trains the teacher of DAKD; objective, memories and system."""

from vifast.systems.mce.objective import ClassMemory, MCEObjective
from vifast.systems.mce.system import MCE, MCEOptions

__all__ = ["MCE", "ClassMemory", "MCEObjective", "MCEOptions"]
