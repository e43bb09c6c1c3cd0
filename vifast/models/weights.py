"""Reading weight files: ``.pth`` and ``.safetensors``, as tensors only, never as code."""

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vifast.models.resnet import ResNet


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """The named tensors of a ``.safetensors`` file or of a PyTorch state dict, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or does not hold a flat dict of tensors.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged safetensors file ({error})") from error
    state = read_saved(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a flat dict of tensors, got {type(state).__name__}")
    return state


def read_saved(path: str | os.PathLike) -> Any:
    """What `torch.save` wrote, restricted to tensors and plain containers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything that would have to be executed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: damaged or not a PyTorch file ({_first_line(error)})") from error


def load_backbone(model: ResNet, path: str | os.PathLike) -> list[str]:
    """Copies a torchvision ResNet checkpoint into ``model``, which may hold only some of its stages.

    The classifier (``fc.*``) and the stages that ``model`` does not hold are left out. Every parameter and
    running statistic of ``model`` must be in the file with the same shape, and every other name of the file
    must belong to a ResNet; ``num_batches_tracked``, which the oldest files lack, is optional.

    Returns:
        The names of the file that were left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged file; missing, unexpected or wrongly shaped names (all are named). The model is
            unchanged then.
    """
    held = tuple({f"{name.split('.')[0]}." for name in model.state_dict()})
    parts = tuple(f"{part}." for part in ("fc", "conv1", "bn1", "layer1", "layer2", "layer3", "layer4"))
    return copy_tensors(
        model,
        read_tensors(path),
        path,
        optional=lambda name: name.endswith("num_batches_tracked"),
        ignored=lambda name: name.startswith(parts) and not name.startswith(held),
    )


def copy_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike,
    *,
    optional: Callable[[str], bool] = lambda name: False,
    ignored: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """Copies a file's tensors into ``model`` by name; those for which ``optional`` may be missing in it.

    Returns:
        The other names of the file, for all of which ``ignored`` must hold.

    Raises:
        ValueError: missing, unexpected or wrongly shaped names (all are named). The model is unchanged then.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in tensors and not optional(name)]
    others = [name for name in tensors if name not in own]
    unexpected = [name for name in others if not ignored(name)]
    reshaped = [
        f"{name} {list(tensors[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", reshaped))
        if names
    ]
    if problems:
        raise ValueError(f"{path}: does not fit this network; {'; '.join(problems)}")
    model.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)
    return others


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
