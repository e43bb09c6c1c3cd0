"""DAKD: dual-aligned knowledge self-distillation (Deng et al. 2025), the student of a frozen teacher."""

from vifast.systems.dakd.exits import DAKDExits
from vifast.systems.dakd.options import DAKDOptions
from vifast.systems.dakd.system import DAKD

__all__ = ["DAKD", "DAKDExits", "DAKDOptions"]
