"""IDKL: implicit discriminative knowledge learning (Ren and Zhang 2024), network and objective."""

from vifast.systems.idkl.network import IDKLNetwork
from vifast.systems.idkl.objective import IDKLObjective, ModalityHead
from vifast.systems.idkl.system import IDKL, IDKLOptions

__all__ = ["IDKL", "IDKLNetwork", "IDKLObjective", "IDKLOptions", "ModalityHead"]
