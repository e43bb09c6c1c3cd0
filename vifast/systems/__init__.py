"""Published systems: network, losses and schedule of one method each, behind the protocol `System`."""

from importlib import import_module

from vifast.systems.base import Batch, System, TrainingImages

SYSTEMS = {
    "agw": "vifast.systems.agw:AGW",
    "ckda": "vifast.systems.ckda:CKDA",
    "dakd": "vifast.systems.dakd:DAKD",
    "idkl": "vifast.systems.idkl:IDKL",
    "lwf": "vifast.systems.lwf:LwF",
    "mce": "vifast.systems.mce:MCE",
}

__all__ = ["SYSTEMS", "Batch", "System", "TrainingImages", "get"]


def get(name: str) -> type[System]:
    """The system class of that name, one of `SYSTEMS`.

    Raises:
        ValueError: a name that is not in `SYSTEMS`.

    >>> get("agw").__name__
    'AGW'
    """
    if name not in SYSTEMS:
        raise ValueError(f"system: expected one of {', '.join(SYSTEMS)}, got {name!r}")
    module, _, attribute = SYSTEMS[name].partition(":")
    return getattr(import_module(module), attribute)
