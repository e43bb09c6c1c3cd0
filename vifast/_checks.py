"""Argument checks of the public functions: the name, what was expected, what came."""

import numbers
from collections.abc import Collection, Sequence

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


def same_rows(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """``value`` has as many rows as ``like``."""
    if value.size(0) != like.size(0):
        raise ValueError(f"{name}: expected {like.size(0)} rows as in {like_name}, got {list(value.shape)}")


def same_columns(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """``value`` has the columns, dtype and device of ``like``."""
    if value.size(1) != like.size(1):
        raise ValueError(f"{name}: expected {like.size(1)} columns as in {like_name}, got {list(value.shape)}")
    same_kind(name, value, like_name, like)


def same_kind(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """``value`` has the dtype and device of ``like``."""
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


def weights(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """One number or bool per row of ``like``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor [N], got {type(value).__name__}")
    if value.is_complex():
        raise TypeError(f"{name}: expected numbers or bools, got {value.dtype}")
    if value.dim() != 1 or value.size(0) != like.size(0):
        raise ValueError(
            f"{name}: expected shape [{like.size(0)}], one per row of {like_name}, got {list(value.shape)}"
        )
    same_device(name, value, like_name, like)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r}")


def number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")


def non_negative(name: str, value: float) -> None:
    number(name, value)
    if not value >= 0:
        raise ValueError(f"{name}: expected at least 0, got {value}")


def feature_map(name: str, value: Tensor) -> None:
    """A floating-point [N, C, H, W] tensor of at least one position."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a map [N, C, H, W], got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point map, got {value.dtype}")
    if value.dim() != 4:
        raise ValueError(f"{name}: expected a map [N, C, H, W], got shape {list(value.shape)}")
    if value.size(2) * value.size(3) == 0:
        raise ValueError(f"{name}: expected a map of at least one position, got shape {list(value.shape)}")


def images(name: str, value: Tensor) -> None:
    """A uint8 [B, H, W, 3] tensor of at least one pixel."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor [B, H, W, 3], got {type(value).__name__}")
    if value.dtype != torch.uint8:
        raise TypeError(f"{name}: expected torch.uint8, got {value.dtype}")
    if value.dim() != 4 or value.size(3) != 3 or value.size(1) * value.size(2) == 0:
        raise ValueError(f"{name}: expected [B, H, W, 3] of at least one pixel, got shape {list(value.shape)}")


def count(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value}")


def same_shape(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """``value`` has the shape, dtype and device of ``like``."""
    if value.shape != like.shape:
        raise ValueError(f"{name}: expected shape {list(like.shape)} as {like_name}, got {list(value.shape)}")
    same_columns(name, value, like_name, like)


def vector(name: str, value: Tensor) -> None:
    """A floating-point [N] tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor [N], got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
    if value.dim() != 1:
        raise ValueError(f"{name}: expected shape [N], got {list(value.shape)}")


def row_values(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """One floating-point number per row of ``like``."""
    vector(name, value)
    if value.size(0) != like.size(0):
        raise ValueError(
            f"{name}: expected shape [{like.size(0)}], one per row of {like_name}, got {list(value.shape)}"
        )
    same_device(name, value, like_name, like)


def positive(name: str, value: float) -> None:
    number(name, value)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a number above 0, got {value}")


def number_list(name: str, value, check, length: int | None = None) -> list[float]:
    """A sequence of numbers that each pass ``check``, ``length`` of them where it is given, at least one otherwise."""
    if isinstance(value, (str, Tensor)) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected a sequence of numbers, got {type(value).__name__}")
    for i, item in enumerate(value):
        check(f"{name}[{i}]", item)
    if len(value) != length if length is not None else len(value) == 0:
        expected = "at least one number" if length is None else f"{length} numbers"
        raise ValueError(f"{name}: expected {expected}, got {len(value)}")
    return [float(item) for item in value]


def flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")


def within(name: str, value: float, least: float, most: float) -> None:
    number(name, value)
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {value}")


def block(name: str, value: int, like: Tensor | None = None) -> None:
    """Rows of a block: an integer above 0 that divides the rows of ``like``."""
    count(name, value)
    if like is not None and like.size(0) % value != 0:
        raise ValueError(f"{name}: expected a divisor of the {like.size(0)} rows, got {value}")


def some_of(name: str, value, choices: tuple[str, ...]) -> None:
    """At least one of the choices."""
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f"{name}: expected a collection of {', '.join(choices)}, got {type(value).__name__}")
    for item in value:
        one_of(name, item, choices)
    if len(value) == 0:
        raise ValueError(f"{name}: expected at least one of {', '.join(choices)}, got none")
