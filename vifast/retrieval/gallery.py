"""Galleries that live on disk: features, identities and cameras of one file, mapped instead of read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vifast import _checks
from vifast._files import writing
from vifast.retrieval import gallery_file
from vifast.retrieval._arguments import as_tensor, check_finite, codes_of
from vifast.retrieval.metrics import evaluate
from vifast.retrieval.ranking import RankMetrics
from vifast.retrieval.search import search

ROWS = 16384  # gathered at a time where some are left out


class Gallery:
    r"""Features [G, D] with the identities and cameras of their rows, in memory or mapped from a file.

    :meth:`open` reads no features: ``search`` and ``evaluate`` read the rows from the file as they need them, through
    the memory that the system keeps files in anyway. :meth:`save`, :meth:`add` and :meth:`remove` write a whole new
    file, bring it to the disk and then rename it. A process killed before the rename leaves the old gallery, one killed
    after it the new one. Who has opened the old file keeps reading it.

    Args:
        features: [G, D], floating point, on the CPU.
        ids: [G] identities, any integer type, or None.
        cams: [G] cameras, likewise.

    Attributes:
        features: [G, D] as given, or a view of the file.
        ids: [G] int64, or None.
        cams: likewise.
        path: the file or folder it was opened from, or None.

    Raises:
        TypeError: features that are not floating point, ids or cameras that are not integers.
        ValueError: shapes that do not fit, no row or no column, features on another device than the CPU.

    Memory:
        What the caller gave; opened from a file, 16 bytes a row at most. Changes copy 4 MiB at a time.

    Example:
        >>> import tempfile, torch
        >>> file = tempfile.mkdtemp() + "/gallery.safetensors"
        >>> gallery = Gallery(torch.eye(3), ids=torch.tensor([4, 5, 6])).save(file)
        >>> gallery.add(torch.ones(1, 3), ids=torch.tensor([7]))
        >>> gallery.remove(gallery.ids == 5)
        >>> Gallery.open(file).ids.tolist()
        [4, 6, 7]
        >>> gallery.search(torch.tensor([[0.0, 0.0, 2.0]]), 2)[1].tolist()
        [[1, 2]]
    """

    def __init__(self, features, ids=None, cams=None):
        features = as_tensor("features", features)
        _checks.rows("features", features)
        if features.numel() == 0:
            raise ValueError(f"features: expected at least one row and one column, got {list(features.shape)}")
        if features.device.type != "cpu":
            raise ValueError(f"features: expected device cpu, got {features.device}")
        self.features = features
        self.ids = None if ids is None else codes_of("ids", ids, "features", len(features))
        self.cams = None if cams is None else codes_of("cams", cams, "features", len(features))
        self.path: Path | None = None
        self._mapped: gallery_file.Mapped | None = None

    @classmethod
    def open(cls, path: str | os.PathLike, *, verify: bool = False) -> Gallery:
        """Maps a gallery that was saved, or feature files that others wrote.

        ``.safetensors``: tensors named ``features`` and perhaps ``ids`` and ``cams``. ``.npy``: features alone. A
        folder: ``features.npy`` and perhaps ``ids.npy`` and ``cams.npy``. Opening checks headers and sizes, which finds
        every truncated file; with ``verify`` also every byte, as :meth:`verify` does.

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged or truncated, or no gallery; the message begins with the path.
        """
        path = Path(path)
        mapped = None
        if path.is_dir():
            files = {name: path / f"{name}.npy" for name in ("features", "ids", "cams")}
            tensors = {
                name: gallery_file.read(file).tensors["features"]
                for name, file in files.items()
                if name == "features" or file.exists()
            }
        else:
            mapped = gallery_file.read(path)
            tensors = mapped.tensors
        if "features" not in tensors:
            raise ValueError(f"{path}: expected a tensor named features, got {', '.join(tensors) or 'none'}")
        try:
            gallery = cls(tensors["features"], tensors.get("ids"), tensors.get("cams"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        gallery.path, gallery._mapped = path, mapped
        if verify:
            gallery.verify()
        return gallery

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        parts = [f"{len(self)} x {self.features.size(1)} {str(self.features.dtype).removeprefix('torch.')}"]
        parts += [name for name, value in (("ids", self.ids), ("cams", self.cams)) if value is not None]
        return f"Gallery({', '.join(parts)}, path={None if self.path is None else str(self.path)!r})"

    def verify(self) -> None:
        """Reads everything: the bytes against the checksum where the file carries one, and that features are finite.

        Raises:
            ValueError: a byte is not what was saved, or a row is not finite; the message names the file.
        """
        if self._mapped is not None:
            gallery_file.verify(self._mapped)
        check_finite("features" if self.path is None else f"{self.path}: features", self.features)

    def save(self, path: str | os.PathLike) -> Gallery:
        """Writes ``path``, a ``.safetensors`` file, in place of what is there, and returns the gallery opened from it.

        The whole source is checked first, so that damage never gets a new checksum.

        Raises:
            OSError: the disk refused; ``path`` is as it was, or whole and new where only the last step failed.
            ValueError: another suffix, or a source that fails :meth:`verify`.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"path: expected a .safetensors file, got {path}")
        with writing(path):
            self._write(path, [[self.features], [self.ids], [self.cams]], len(self))
        return Gallery.open(path)

    def add(self, features, ids=None, cams=None) -> None:
        """Appends rows, with identities and cameras where the gallery has them. The file is replaced, once per call.

        Raises:
            TypeError: a dtype that is not the gallery's.
            ValueError: columns, ids or cameras that do not fit, features that are not finite, a gallery that was not
                opened from a ``.safetensors`` file or that another process replaced since.
        """
        more = Gallery(features, ids, cams)
        _checks.same_columns("features", more.features, "the gallery", self.features)
        for name in ("ids", "cams"):
            if (getattr(self, name) is None) != (getattr(more, name) is None):
                raise ValueError(f"{name}: expected {'none' if getattr(self, name) is None else 'one per row'}")
        more.verify()
        pieces = [[getattr(self, name), getattr(more, name)] for name in ("features", "ids", "cams")]
        self._replace(pieces, len(self) + len(more))

    def remove(self, rows) -> None:
        """Drops rows, given as a bool mask [G] or as their numbers; the others keep their order. The file is replaced.

        Raises:
            IndexError: a row that the gallery does not have.
            TypeError: neither bools nor integers.
            ValueError: no row would be left, or as for :meth:`add`.
        """
        keep = self._kept(as_tensor("rows", rows))
        if not bool(keep.any()):
            raise ValueError(f"rows: expected to leave at least one of the {len(self)} rows")

        def pieces(value: Tensor | None) -> Iterator[Tensor]:
            for start in range(0, len(self), ROWS):
                yield value[start : start + ROWS][keep[start : start + ROWS]]

        self._replace([pieces(self.features), pieces(self.ids), pieces(self.cams)], int(keep.sum()))

    def search(self, query, k: int, **options) -> tuple[Tensor, Tensor]:
        """:func:`vifast.retrieval.search` in this gallery."""
        return search(query, self.features, k, **options)

    def evaluate(self, query, query_ids, query_cams=None, **options) -> RankMetrics:
        """:func:`vifast.retrieval.evaluate` of this gallery, which must have identities."""
        if self.ids is None:
            raise ValueError("ids: expected a gallery with identities, got None")
        return evaluate(query, self.features, query_ids, self.ids, query_cams, self.cams, **options)

    def _kept(self, rows: Tensor) -> Tensor:
        keep = torch.ones(len(self), dtype=torch.bool)
        if rows.dtype == torch.bool:
            if rows.shape != keep.shape:
                raise ValueError(f"rows: expected a mask of shape [{len(self)}], got {list(rows.shape)}")
            return ~rows
        if rows.is_floating_point() or rows.is_complex() or rows.dim() != 1:
            raise TypeError(f"rows: expected bools or a list of whole numbers, got {rows.dtype} {list(rows.shape)}")
        outside = rows[(rows < 0) | (rows >= len(self))]
        if len(outside):
            raise IndexError(f"rows: expected 0..{len(self) - 1}, got {int(outside[0])}")
        keep[rows.long()] = False
        return keep

    def _replace(self, pieces, count: int) -> None:
        if self._mapped is None or self.path.suffix != ".safetensors":
            raise ValueError(f"{self.path or 'gallery'}: expected a .safetensors gallery, save() it as one first")
        with writing(self.path):
            if gallery_file.read(self.path).stamp != self._mapped.stamp:
                raise ValueError(f"{self.path}: replaced by another process since it was opened, open it again")
            self._write(self.path, pieces, count)
            vars(self).update(vars(Gallery.open(self.path)))  # while nobody else may replace it

    def _write(self, path: Path, pieces, count: int) -> None:
        self.verify()
        values = [("features", self.features), ("ids", self.ids), ("cams", self.cams)]
        held = [(name, value, part) for (name, value), part in zip(values, pieces, strict=True) if value is not None]
        layout = [(name, value.dtype, [count, *value.shape[1:]]) for name, value, _ in held]
        gallery_file.write(path, layout, [part for _, _, part in held])
