"""Argument checks of the public functions: the name, what was expected, what came."""

import numbers

import torch
from torch import Tensor


def rows(name: str, value: Tensor) -> None:
    """A floating-point [N, D] tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor [N, D], got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    if value.dim() != 2:
        raise ValueError(f"{name}: expected shape [N, D], got {list(value.shape)}")


def same_columns(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """``value`` has the columns, dtype and device of ``like``."""
    if value.size(1) != like.size(1):
        raise ValueError(f"{name}: expected {like.size(1)} columns as in {like_name}, got {list(value.shape)}")
    if value.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} as {like_name}, got {value.dtype}")
    same_device(name, value, like_name, like)


def same_device(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as {like_name}, got {value.device}")


def labels(name: str, value: Tensor, like_name: str, like: Tensor) -> Tensor:
    """One integer per row of ``like``; returned as int64."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected an integer tensor [N], got {type(value).__name__}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer tensor, got {value.dtype}")
    if value.dim() != 1 or value.size(0) != like.size(0):
        raise ValueError(
            f"{name}: expected shape [{like.size(0)}], one per row of {like_name}, got {list(value.shape)}"
        )
    same_device(name, value, like_name, like)
    return value.to(torch.int64)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def non_negative(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not value >= 0:
        raise ValueError(f"{name}: expected at least 0, got {value}")
