"""Galleries as files: tensors mapped from ``.npy`` and ``.safetensors``, and a file written whole or not at all.

The safetensors layout (8 bytes of length, a JSON header, the tensors) is read and written here: the mapping is then
NumPy's, and nothing optional is needed. What this module writes carries two SHA-256 sums in its metadata: ``content``
of every byte of the file with zeros in the place of both sums, which ``verify`` checks, and ``header`` of the header
with zeros in its own place, which every opening checks.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vifast._files import durable
from vifast.retrieval._arguments import as_tensor

CHUNK = 4 * 2**20  # bytes written or hashed at a time
ALIGN = 64  # bytes to which the header is padded, so that mapped rows begin on a cache line
MOST_HEADER = 100 * 2**20  # of the format's own readers: a damaged length must not allocate the machine
NO_SUM = "0" * 64
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Mapped:
    """Tensors over one read-only mapping of a file, which stays as it was opened when the file is replaced."""

    path: Path
    tensors: dict[str, Tensor]
    stamp: tuple[int, ...]  # what tells this version of the file from the next
    blank: bytes = b""  # its header without the sums
    data: Tensor | None = None  # every byte after the header
    content: str | None = None  # the sum of both, where the file carries one


def read(path: Path) -> Mapped:
    """Maps a ``.npy`` file (one tensor, named ``features``) or a ``.safetensors`` file; nothing but headers is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, truncated, too long, or of neither kind; the message begins with its path.
    """
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a .npy or .safetensors file")
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            tensors, *checks = readers[path.suffix](path, file, stat.st_size)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    return Mapped(path, tensors, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns), *checks)


def _read_npy(path, file, size):
    version = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = version[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError, SyntaxError, TypeError) as error:
        raise ValueError(f"{path}: damaged .npy header ({_line(error)})") from error
    if dtype.hasobject:
        raise ValueError(f"{path}: expected numbers, got Python objects")
    _check_size(path, size, file.tell() + dtype.itemsize * math.prod(shape))
    if math.prod(shape) == 0:
        array = np.empty(shape, dtype)
    else:
        array = np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")
    try:
        return ({"features": as_tensor("features", array)},)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {_line(error)}") from error


def _read_safetensors(path, file, size):
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(size - 8, MOST_HEADER):
        raise ValueError(f"{path}: truncated or damaged, {size} bytes do not hold its header")
    text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        sums = [metadata.get(f"sha256.{name}") for name in ("header", "content")]
        blank = head + text
        if any(sums):
            blank = blank.replace(sums[0].encode(), NO_SUM.encode())
            if hashlib.sha256(blank).hexdigest() != sums[0]:
                raise ValueError("its bytes do not match its checksum")
            blank = blank.replace(sums[1].encode(), NO_SUM.encode())
        entries = sorted((_entry(name, **value) for name, value in header.items()), key=lambda e: e[3:])
        end = 0
        for name, _, _, first, last in entries:
            if first != end:
                raise ValueError(f"{name} begins at byte {first} of the data, not at {end}")
            end = last
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: damaged safetensors header ({_line(error)})") from error
    _check_size(path, size, 8 + length + end)
    data = torch.empty(0, dtype=torch.uint8)
    if end:
        data = as_tensor("file", np.memmap(file, np.uint8, "r", 8 + length, (end,)))
    tensors = {}
    for name, dtype, shape, first, last in entries:
        if dtype not in DTYPES:
            continue  # a foreign file may hold what no gallery needs
        part = data[first:last]
        if (8 + length + first) % DTYPES[dtype].itemsize:
            part = part.clone()  # foreign again: a tensor cannot begin at such an address
        tensors[name] = part.view(DTYPES[dtype]).view(shape)
    return tensors, blank, data, sums[1]


def _entry(name, dtype, shape, data_offsets):
    first, last = data_offsets
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, first, last)):
        raise ValueError(f"{name}: expected whole numbers, got {shape} at {data_offsets}")
    if dtype in DTYPES and last - first != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{name}: {last - first} bytes do not hold {dtype} {shape}")
    return name, dtype, shape, first, last


def _check_size(path: Path, size: int, expected: int) -> None:
    if size != expected:
        what = "truncated" if size < expected else "damaged"
        raise ValueError(f"{path}: {what}, its header tells {expected} bytes, it has {size}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def verify(mapped: Mapped) -> None:
    """ValueError naming the file where a byte is not what was saved. Reads it all; a file without a checksum passes."""
    if mapped.content is None:
        return
    digest = hashlib.sha256(mapped.blank)
    for chunk in mapped.data.split(CHUNK):
        digest.update(chunk.numpy())
    if digest.hexdigest() != mapped.content:
        raise ValueError(f"{mapped.path}: damaged, its bytes do not match its checksum")


def write(path: Path, layout: Sequence[tuple[str, torch.dtype, list[int]]], parts: Iterable[Iterable[Tensor]]) -> None:
    """Replaces ``path`` (under :func:`writing`) by a safetensors file of the tensors in ``layout``.

    ``parts`` gives the rows of each tensor in pieces, which are written as they come.
    """
    with durable(path) as file:
        _write_tensors(file, layout, parts)


def _write_tensors(file: int, layout, parts) -> None:
    entries, at = {}, 0
    for name, dtype, shape in layout:
        size = math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    blank = _header(entries, NO_SUM, NO_SUM)
    digest = hashlib.sha256(blank)
    _write_all(file, blank)
    for pieces in parts:
        for piece in pieces:
            rows = piece.contiguous().view(torch.uint8).numpy().reshape(-1)
            for first in range(0, len(rows), CHUNK):
                digest.update(rows[first : first + CHUNK])
                _write_all(file, rows[first : first + CHUNK])
    os.lseek(file, 0, os.SEEK_SET)
    header_sum = hashlib.sha256(_header(entries, NO_SUM, digest.hexdigest())).hexdigest()
    _write_all(file, _header(entries, header_sum, digest.hexdigest()))


def _header(entries: dict, header_sum: str, content_sum: str) -> bytes:
    metadata = {"format": "pt", "sha256.header": header_sum, "sha256.content": content_sum}
    text = json.dumps({"__metadata__": metadata} | entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return len(text).to_bytes(8, "little") + text


def _write_all(file: int, data) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
