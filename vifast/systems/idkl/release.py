"""Import of the published checkpoint into `IDKL`: by the names of its heads, and by the form of everything else.

The release holds three whole ResNets, of which one's first half and two second halves are used; the rest, and an
attention block that nothing calls, is left out here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn

from vifast.models import read_tensors
from vifast.systems.idkl.system import IDKL

#: Our name of a head, and the release's.
HEADS = {
    "neck_shared": "bn_neck",
    "neck_specific": "bn_neck_sp",
    "classifier_shared": "classifier",
    "classifier_specific": "classifier_sp",
    "classifier_entropy": "C_sp_f",
    "modality_shared": "D_shared_pseu",
    "modality_specific": "D_special",
}
_WORDS = {"specific": ("spec", "sp_", "_sp"), "shared": ("share",)}


def load_release(
    idkl: IDKL, path: str | os.PathLike, *, names: Mapping[str, str] | None = None, retrieval_only: bool = False
) -> list[str]:
    """Copies a published checkpoint into ``idkl``.

    ResNets are recognised by torchvision's names under any prefix, the purifier's normalisation and masks by their
    shapes. Where that leaves a choice, ``names`` settles it: the prefix in the file of any of ``front``, ``shared``,
    ``specific``, ``norm``, ``gate_normed``, ``gate_raw`` and of the heads.

    Args:
        idkl: of the release's sizes.
        path: a PyTorch state dict or ``.safetensors``.
        names: prefixes in the file, by our names.
        retrieval_only: front, shared branch and its neck alone, which make the feature; the rest stays as it is.

    Returns:
        The names in the file that were not used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged file; a part that is missing, fits twice or has another shape. ``idkl`` is unchanged then.
    """
    tensors = read_tensors(path)
    names = dict(names or {})
    network = idkl.network
    wanted: dict[str, nn.Module] = {"front": network.front, "shared": network.shared}
    heads = {"neck_shared": idkl.objective.neck_shared}
    if not retrieval_only:
        wanted["specific"] = network.specific
        heads = {name: getattr(idkl.objective, name) for name in HEADS}
    names = _trunks(tensors, names, path) | names
    purifier: dict[str, nn.Module] = {}
    if not retrieval_only and network.purifier is not None:
        purifier = {name: getattr(network.purifier, name) for name in ("norm", "gate_normed", "gate_raw")}
        names = _purifier(tensors, names, purifier, path) | names
    found: list[tuple[Tensor, str]] = []
    for name, module in (wanted | purifier | heads).items():
        prefix = names.get(name, HEADS.get(name, name))
        pair = _by_name if name in wanted else _by_order
        found += pair(module, tensors, prefix, f"{path}: {name}")
    for own, theirs in found:
        own.copy_(tensors[theirs])
    used = {theirs for _, theirs in found}
    return [name for name in tensors if name not in used]


def _trunks(tensors: Mapping[str, Tensor], names: Mapping[str, str], path) -> dict[str, str]:
    """Prefixes of front, shared and specific, by words in them; the one without such a word is the front."""
    mark = "layer4.0.conv1.weight"
    prefixes = [name.removesuffix(mark).rstrip(".") for name in tensors if name.endswith(mark)]
    free = [prefix for prefix in prefixes if prefix not in names.values()]
    found: dict[str, str] = {}
    for role in ("specific", "shared", "front"):
        if role in names:
            continue
        fits = [p for p in free if role == "front" or any(word in f"{p}_".lower() for word in _WORDS[role])]
        if len(fits) != 1:
            raise ValueError(
                f"{path}: {role}: expected one ResNet, got {fits or prefixes}; give names={{{role!r}: ...}}"
            )
        found[role] = fits[0]
        free.remove(fits[0])
    return found


def _purifier(tensors, names, parts: Mapping[str, nn.Module], path) -> dict[str, str]:
    """The prefix of the one InstanceNorm; the two masks look alike, so their names must be told."""
    for role in ("gate_normed", "gate_raw"):
        if role not in names:
            shape = next(parts[role].parameters()).shape
            fits = [
                name.rsplit(".", 2)[0]
                for name, value in tensors.items()
                if value.shape == shape and "layer" not in name
            ]
            raise ValueError(f"{path}: {role}: expected its prefix in names, one of {fits}")
    if "norm" in names:
        return {}
    size = parts["norm"].weight.shape
    taken = (*HEADS.values(), *names.values())
    fits = [
        name.removesuffix(".running_mean")
        for name, value in tensors.items()
        if name.endswith(".running_mean") and value.shape == size and not name.startswith(taken) and "layer" not in name
    ]
    if len(fits) != 1:
        raise ValueError(f"{path}: norm: expected one InstanceNorm, got {fits}; give names={{'norm': ...}}")
    return {"norm": fits[0]}


def _by_name(module: nn.Module, tensors, prefix: str, where: str) -> list[tuple[Tensor, str]]:
    return [_pair(own, tensors, f"{prefix}.{name}", where) for name, own in _state(module)]


def _by_order(module: nn.Module, tensors, prefix: str, where: str) -> list[tuple[Tensor, str]]:
    """Layers of the same kind in the same order; what they are called in between does not matter."""
    theirs = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors if name.startswith(f"{prefix}.")))
    kinds = [_kind(tensors.get(f"{layer}.weight"), f"{layer}.running_mean" in tensors) for layer in theirs]
    pairs = []
    for own in (layer for layer in module.modules() if getattr(layer, "weight", None) is not None):
        kind = _kind(own.weight, hasattr(own, "running_mean"))
        if kind not in kinds:
            raise ValueError(f"{where}: expected {own} in {prefix!r}, got no more of it")
        at = kinds.index(kind)
        kinds.pop(at)
        layer = theirs.pop(at)
        pairs += [_pair(value, tensors, f"{layer}.{name}", where) for name, value in _state(own)]
    return pairs


def _kind(weight: Tensor | None, tracks: bool) -> tuple[int, bool]:
    return 0 if weight is None else weight.dim(), tracks


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")]


def _pair(own: Tensor, tensors, name: str, where: str) -> tuple[Tensor, str]:
    if name not in tensors:
        raise ValueError(f"{where}: {name} is missing")
    if tensors[name].shape != own.shape:
        raise ValueError(f"{where}: {name}: expected shape {list(own.shape)}, got {list(tensors[name].shape)}")
    return own, name
