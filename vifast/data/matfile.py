"""MATLAB level 5 files with nested cells of numbers: what `rand_perm_cam.mat` of SYSU-MM01 is made of.

Own code instead of `scipy.io`: one small file of one dataset does not justify a dependency of that size for everybody
who reads or synthesises data. Cells and real numeric arrays only; the tests hold it against scipy in both directions.

Source: MathWorks, "MAT-File Format" (level 5), https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
"""

import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

_MATRIX, _COMPRESSED = 14, 15
_CELL_CLASS = 1
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


def read_mat(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The variables of a MATLAB level 5 file; a cell array becomes an object array of the same shape.

    Raises:
        ValueError: the file, which is named, is not of this format or holds something else than cells and real
            numbers.
    """
    data = Path(path).read_bytes()
    if b"MATLAB 7.3" in data[:116] or data[1:4] == b"HDF":
        raise ValueError(f"{path}: MATLAB 7.3 (HDF5) file; expected level 5, save it with -v7")
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        raise ValueError(f"{path}: not a MATLAB level 5 file")
    order = "<" if data[126:128] == b"IM" else ">"
    try:
        return dict(_matrix(body, order) for kind, body in _elements(data[128:], order) if kind == _MATRIX)
    except (struct.error, zlib.error, IndexError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged or unsupported MATLAB file ({error})") from error


def write_mat(path: str | os.PathLike, variables: dict[str, np.ndarray]) -> None:
    """Write arrays of numbers, or object arrays of them (cells), as a MATLAB level 5 file. Same input, same bytes."""
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
    Path(path).write_bytes(header + b"".join(_pack_matrix(name, value) for name, value in variables.items()))


def _elements(data: bytes, order: str):
    """(type, body) of the elements that follow each other in `data`, compressed ones unpacked."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # small element: four bytes of body inside the tag
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
        else:
            start, step = at + 8, 8 + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise ValueError("the file ends inside an element")
        body = data[start : start + size]
        if kind == _COMPRESSED:
            yield from _elements(zlib.decompress(body), order)
        else:
            yield kind, body
        at += step


def _matrix(data: bytes, order: str) -> tuple[str, np.ndarray]:
    if not data:  # an empty cell may be an element without a body
        return "", np.zeros((0, 0))
    (_, flags), (_, shape), (_, name), *parts = _elements(data, order)
    shape = tuple(np.frombuffer(shape, order + "i4").tolist())
    array_class = struct.unpack_from(order + "I", flags)[0] & 0xFF
    if array_class == _CELL_CLASS:
        cells = [_matrix(body, order)[1] for _, body in parts]
        if len(cells) != math.prod(shape):
            raise ValueError(f"cell array of shape {shape} with {len(cells)} cells")
        value = np.empty(len(cells), dtype=object)
        value[:] = cells
    elif array_class in _CLASSES:
        kind, body = parts[0] if parts else (2, b"")
        value = np.frombuffer(body, order + _STORED[kind]).astype(_CLASSES[array_class])
    else:
        raise ValueError(f"MATLAB class {array_class} is neither a cell nor a real numeric array")
    return name.decode("ascii"), value.reshape(shape, order="F")


def _pack(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def _pack_matrix(name: str, value: np.ndarray) -> bytes:
    if value.dtype == object:
        array_class = _CELL_CLASS
        content = b"".join(_pack_matrix("", cell) for cell in value.flatten(order="F"))
    else:
        codes = (
            {dtype: code for code, dtype in _CLASSES.items()},
            {dtype: code for code, dtype in _STORED.items()},
        )
        array_class, stored = (table[value.dtype.str[1:]] for table in codes)
        content = _pack(stored, value.astype(value.dtype.newbyteorder("<")).tobytes(order="F"))
    flags = _pack(6, struct.pack("<II", array_class, 0))
    shape = _pack(5, np.array(value.shape, "<i4").tobytes())
    return _pack(_MATRIX, flags + shape + _pack(1, name.encode("ascii")) + content)
