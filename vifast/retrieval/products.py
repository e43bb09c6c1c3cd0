"""Products of queries with gallery rows, tile by tile, of the same bits whichever of the rows a process holds."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vifast.kernels import _C
from vifast.kernels._cpu import product
from vifast.retrieval._arguments import check_finite

WORKSPACE = 64 * 2**20  # bytes of the matrix that exist at a time
LEAST_ROWS = 64  # of the matrix at a time all the same: with fewer the gallery is read more often than multiplied
COLUMNS = 2048  # gallery rows of one product
LAST_COLUMNS = 64  # of which the last product has a multiple
ALIGNMENT = 64  # bytes
ORIGIN_ROWS = 128  # of the queries, whose mean stands for the mean of all
LARGEST = {torch.float32: 1e37, torch.float64: 1e300}  # products beyond this may overflow on the way


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 features are multiplied in float64, all others in float32."""
    return torch.promote_types(dtype, torch.float32)


def block_rows(num_gallery: int, dtype: torch.dtype) -> int:
    """Queries whose rows of the matrix are made together."""
    return max(LEAST_ROWS, WORKSPACE // (num_gallery * working_dtype(dtype).itemsize))


def origin_of(query: Tensor) -> Tensor:
    """A row near the others. Of queries alone, so that keys do not depend on the gallery's other rows."""
    return query[:: -(-len(query) // ORIGIN_ROWS)].double().mean(0).to(working_dtype(query.dtype))


def moved(rows: Tensor, origin: Tensor | None) -> Tensor:
    """float32 rows, of float64 ones only after they came to the origin: an offset must not cost digits."""
    return rows.float() if origin is None else (rows.to(origin.dtype) - origin).float()


def keyed_rows(query: Tensor, metric: str, origin: Tensor | None) -> Tensor:
    """The queries as the product of a search wants them: unit rows, rows less the origin, or as they are."""
    if metric != "cosine":
        return moved(query, origin)
    wide = query.double()
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return torch.where(norm > 0, wide / norm, 0.0).float()


class GalleryProducts:
    """Keys of a gallery: ``scale * out + bias`` of what :meth:`fill` writes rises with a query's distance to each row.

    A factor or a constant that all keys of a query share changes no ranking, so queries are not scaled. The Euclidean
    metrics take both sides less ``origin``: any row near the others takes away the cancellation of a shared offset.

    The rows are number ``first`` and following of a gallery of ``total``. float32 on the CPU is multiplied by our own
    products, whose bits depend on two rows alone. Others are the platform's, for groups of COLUMNS rows, counted
    from the first row of the whole gallery; rows of a group that are held elsewhere, or by nobody, are zeros.
    Every product thus has the same shape and place whoever makes it, and so the same bits: those of a BLAS depend on
    both (measured: elements of the last few columns may be summed in another order). Nothing but a tile is copied.
    """

    def __init__(self, gallery: Tensor, metric: str, origin: Tensor, first: int, total: int, name: str = "gallery"):
        self.gallery, self.first, self.total = gallery, first, total
        self.dtype = working_dtype(gallery.dtype)
        self.packs = gallery.device.type == "cpu" and self.dtype == torch.float32
        self.origin = origin if metric in ("euclidean", "sqeuclidean") else None
        self.scale, self.bias = (gallery.new_zeros(len(gallery), dtype=self.dtype) for _ in range(2))
        self.most = 0.0  # the largest norm of the rows as given
        for columns, part, rows in self._tiles(None):
            norm = norms(rows)[part]
            if not bool(norm.isfinite().all()):
                check_finite(name, gallery, first)
            self.most = max(self.most, float(norm.max()))
            if metric == "cosine":
                self.scale[columns] = -torch.where(norm > 0, 1 / norm, 0.0).to(self.dtype)
            else:
                self.scale[columns] = -1 if metric == "dot" else -2
        if self.origin is not None:
            for columns, part, rows in self._tiles(self.origin):
                self.bias[columns] = squares(rows)[part].to(self.dtype)

    @property
    def linear(self) -> tuple[Tensor, Tensor]:
        return self.scale, self.bias

    def fill(self, query: Tensor, out: Tensor) -> Tensor:
        """``out [n, rows]``: products of n queries, the same n whoever makes them."""
        query = query.to(self.dtype)
        if self.packs:
            return self._fill_packed(query.contiguous(), out)
        query = query if self.origin is None else query - self.origin
        for columns, part, rows in self._tiles(self.origin):
            if len(rows) == columns.stop - columns.start and out.device.type == "cpu":
                product(query, rows, out[:, columns])
            else:  # on a GPU the platform may choose its kernel by the stride of the output
                out[:, columns] = product(query, rows, out.new_empty(len(query), len(rows)))[:, part]
        return out

    def _fill_packed(self, query: Tensor, out: Tensor) -> Tensor:
        threads = torch.get_num_threads()
        left = _C.PackedRows(query, self.origin, threads)
        for start in range(0, len(self.gallery), COLUMNS):
            rows = self.gallery[start : start + COLUMNS].to(self.dtype).contiguous()
            right = _C.PackedRows(rows, self.origin, threads)
            left.products(right, out[:, start : start + COLUMNS], threads)
        return out

    def _tiles(self, origin: Tensor | None) -> Iterator[tuple[slice, slice, Tensor]]:
        """(columns of the rows held, their part of the tile, tile less the origin)."""
        for columns, part, size in grid(self.first, len(self.gallery), self.total, COLUMNS):
            rows = self.gallery[columns].to(self.dtype)
            yield columns, part, padded(rows if origin is None else rows - origin, part, size)


def grid(first: int, count: int, total: int, width: int) -> Iterator[tuple[slice, slice, int]]:
    """The ``count`` rows from ``first`` on of a gallery of ``total``, in groups of ``width`` counted from row 0.

    Gives for each group: the rows that are among them, from 0; their place in the group; its size, which is that of the
    group whoever holds its rows, at the end of the gallery a multiple of LAST_COLUMNS.
    """
    end = first + count
    for start in range(first - first % width if count else end, end, width):
        size = min(width, -(-(total - start) // LAST_COLUMNS) * LAST_COLUMNS)
        low, high = max(start, first), min(start + width, end)
        yield slice(low - first, high - first), slice(low - start, high - start), size


def padded(rows: Tensor, part: slice, size: int) -> Tensor:
    """``rows`` in their place among ``size``, contiguous and aligned; the others are zeros."""
    if len(rows) != size:
        whole = rows.new_zeros(size, rows.size(1))
        whole[part] = rows
        return whole
    if rows.data_ptr() % ALIGNMENT or not rows.is_contiguous():
        return rows.clone(memory_format=torch.contiguous_format)
    return rows


def check_sizes(names: tuple[str, str], query_most: float, gallery_most: float, dtype: torch.dtype) -> None:
    """ValueError where products of rows with these norms could overflow."""
    largest = LARGEST[working_dtype(dtype)]
    if query_most * gallery_most > largest:
        raise ValueError(f"{', '.join(names)}: expected norms whose product stays below {largest:g}")


def finite_norms(name: str, x: Tensor) -> Tensor:
    norm = norms(x)
    if not bool(norm.isfinite().all()):
        check_finite(name, x)
    return norm


def squares(x: Tensor) -> Tensor:
    """float64 squared norms. Those of float64 rows are not roots squared again, so that equal sums stay equal."""
    return x.square().sum(1) if x.dtype == torch.float64 else norms(x).square()


def norms(x: Tensor) -> Tensor:
    """float64 norms, each summed in one order whatever the number of threads."""
    if x.dtype == torch.float64 or x.device.type != "cpu":
        return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    norm = torch.empty(len(x), dtype=torch.float64)
    _C.row_norms(x.float().contiguous(), norm, torch.get_num_threads())
    return norm
