"""Decoded images kept for the next epoch and the next run: one memory-mapped file of uint8 rows.

Layout: 8 bytes of mark, 8 of length, a JSON header padded to a page; the images `[N, H, W, 3]` one after another; their
CRC-32 sums `[N]`; the SHA-256 of all but the images. The header says what the images were made of: path, size and time
of every source file, decoder, filter. A file is there whole or not at all: it is written beside its place, by one
process at a time, and renamed.
"""

import errno
import hashlib
import json
import logging
import mmap
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vifast._files import durable, writing
from vifast._progress import steps
from vifast.data.images import read_image
from vifast.data.records import Samples
from vifast.data.resize import check_size

MARK, VERSION, PAGE = b"vifastIM", 1, 4096
_log = logging.getLogger("vifast.data")


class ImageCache:
    """Images of a split, decoded and resized, by their position in it: see `open_cache`.

    Attributes:
        path: the file, None where the images are kept in memory.
        size: (height, width) of the images.
    """

    def __init__(self, images: np.ndarray, file: "_File | None" = None):
        self._images, self._file = images, file
        self.path = None if file is None else file.path
        self.size = images.shape[1:3]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
        """The images at `indices` `[B]`: uint8 `[B, H, W, 3]`, written to `out` where it is given.

        Raises:
            IndexError: there is no such image.
            ValueError: `out` is not a contiguous uint8 array of that shape.
        """
        rows = self._rows(indices)
        shape = (len(rows), *self.size, 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out: expected a contiguous uint8 array {shape}, got {out.dtype} {out.shape}")
        return np.take(self._images, rows, axis=0, out=out, mode="clip")  # "raise" would fill a copy of `out` first

    def expect(self, indices: Sequence[int]) -> None:
        """Has the system fetch the images that will be read next, while the caller does something else.

        From disk, with 30 ms between batches of 64 images of 384 x 144, `read` then waited 0.37 to 0.58 times as long;
        where all is in memory, this costs 4 us an image.

        Raises:
            IndexError: there is no such image.
        """
        rows = self._rows(indices)
        if self._file is not None:
            for first in self._file.first + rows * self._images[0].nbytes:
                begin = int(first) // mmap.PAGESIZE * mmap.PAGESIZE
                end = int(first) + self._images[0].nbytes
                self._file.mapped.madvise(mmap.MADV_WILLNEED, begin, end - begin)

    def _rows(self, indices: Sequence[int]) -> np.ndarray:
        rows = np.asarray(indices, dtype=np.int64)
        outside = rows[(rows < 0) | (rows >= len(self))]
        if len(outside):
            raise IndexError(f"indices: expected 0 to {len(self) - 1}, got {outside[0]}")
        return rows

    def verify(self) -> None:
        """ValueError that names the file and the first image whose bytes are not those that were written."""
        for row in steps(range(len(self) if self._file else 0), "verifying"):
            if not self._file.sound(row):
                source = self._file.header["files"][row][0]
                raise ValueError(f"{self.path}: damaged, image {row} ({source}) does not match its checksum")

    def __reduce__(self):
        return (ImageCache, (self._images,)) if self._file is None else (_again, (self.path, self._file.digest))


def open_cache(
    samples: Samples,
    *,
    size: tuple[int, int],
    resample: str = "bilinear",
    folder: str | os.PathLike | None = None,
    rebuild: bool = False,
) -> ImageCache:
    """The decoded images of `samples`, made now where they are not there yet.

    With a `folder` they are one file in it (`N * H * W * 3` bytes and the names), which all processes map and later
    runs find again. Of several processes that want it, one makes it and the others wait. It is good while every source
    file has the size and modification time, and Pillow the version, of when it was made. Otherwise it is made again:
    images whose file is as it was are copied, the others decoded. Another list of images is another file; any of them
    may be deleted at any time.

    Args:
        samples: whose images.
        size: (height, width).
        resample: `"bilinear"` or `"lanczos"`.
        folder: where the file is or will be; None keeps the images in memory.
        rebuild: decode everything again.

    Raises:
        FileNotFoundError: an image is not there (it is named).
        ValueError: an image cannot be decoded, or the file is damaged; the message begins with the path.
        OSError: the file cannot be written, as on a full disk. What was there before stays.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from vifast.data.records import make_samples
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (4, 8), "red").save(folder / "a.png")
        >>> cache = open_cache(make_samples([(folder / "a.png", 0, 1, 0)]), size=(8, 4), folder=folder)
        >>> cache.read([0, 0]).shape, cache.read([0])[0, 0, 0].tolist()
        ((2, 8, 4, 3), [255, 0, 0])
    """
    check_size(size, resample)
    if not len(samples):
        raise ValueError("samples: expected at least one image, got none")
    if folder is None:
        images = np.empty((len(samples), *size, 3), np.uint8)
        _decode(samples.paths, tuple(size), resample, images.__setitem__)
        return ImageCache(images)
    header = _header(samples.paths, tuple(size), resample)
    named = json.dumps([path for path, *_ in header["files"]]).encode()
    name = f"{hashlib.sha256(named).hexdigest()[:16]}-{size[0]}x{size[1]}-{resample}.images"
    path = Path(folder) / name
    if not rebuild and (found := _read(path)) and found.header == header:
        return ImageCache(found.images, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        found = None if rebuild else _read(path)  # another process may have made it meanwhile
        if not found or found.header != header:
            try:
                _build(path, header, found)
            except OSError as error:
                if error.filename is None:
                    raise OSError(error.errno, error.strerror, str(path)) from error
                raise
            found = _read(path)
    return ImageCache(found.images, found)


class _File(NamedTuple):
    path: Path
    header: dict
    mapped: mmap.mmap
    first: int  # byte of the images
    images: np.ndarray
    sums: np.ndarray
    digest: str  # of all but the images

    def sound(self, row: int) -> bool:
        return zlib.crc32(self.images[row]) == self.sums[row]


def _again(path: Path, digest: str) -> ImageCache:
    """The cache of another process."""
    found = _read(path)
    if not found or found.digest != digest:
        raise ValueError(f"{path}: is not there any more as it was opened")
    return ImageCache(found.images, found)


def _header(paths: Sequence[Path], size: tuple[int, int], resample: str) -> dict:
    import PIL

    files = []
    for path in paths:
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{path}: image not found") from None
        files.append([os.path.abspath(path), found.st_size, found.st_mtime_ns])
    kind = {"version": VERSION, "decoder": f"pillow {PIL.__version__}", "resample": resample, "size": list(size)}
    return {**kind, "files": files}


def _head(header: dict) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(MARK) + 8 + len(text)) % PAGE)
    return MARK + len(text).to_bytes(8, "little") + text


def _read(path: Path) -> _File | None:
    """Maps the file, None where there is none. Nothing but header and sums is read.

    Raises:
        ValueError: it is damaged or truncated.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        total = os.fstat(file.fileno()).st_size
        try:
            start = file.read(len(MARK) + 8)
            length = int.from_bytes(start[len(MARK) :], "little")
            if start[: len(MARK)] != MARK or length > total:
                raise ValueError("its first bytes are not those of an image cache")
            text = file.read(length)
            header = json.loads(text)
            shape = (len(header["files"]), *header["size"], 3)
            first = len(start) + length
            end = first + int(np.prod(shape))
            if total != end + 4 * shape[0] + 32:
                raise ValueError(f"its header tells {end + 4 * shape[0] + 32} bytes, it has {total}")
            file.seek(end)
            sums, digest = file.read(4 * shape[0]), file.read()
            if hashlib.sha256(start + text + sums).digest() != digest:
                raise ValueError("header and sums do not match their checksum")
        except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
            why = " ".join(str(error).split())
            raise ValueError(f"{path}: damaged or truncated ({why}); delete or rebuild it") from error
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    images = np.frombuffer(mapped, np.uint8, end - first, first).reshape(shape)
    return _File(path, header, mapped, first, images, np.frombuffer(sums, "<u4"), digest.hex())


def _build(path: Path, header: dict, before: _File | None) -> None:
    """Writes the file (under `writing`), with the images that `before` has of unchanged files."""
    head, size = _head(header), header["size"]
    count, step = len(header["files"]), int(np.prod(size)) * 3
    sums = np.empty(count, "<u4")
    kept = {}
    if before is not None and _kind(before.header) == _kind(header):
        kept = {tuple(source): row for row, source in enumerate(before.header["files"])}
    rows = [kept.get(tuple(source)) for source in header["files"]]
    if kept:
        _log.info("%s: %d of %d images changed and are decoded again", path, rows.count(None), count)
    with durable(path) as file:
        _reserve(file, len(head) + count * (step + 4) + 32)

        def put(row: int, image: np.ndarray) -> None:
            sums[row] = zlib.crc32(image)
            _write(file, image, len(head) + row * step)

        def old(row: int) -> np.ndarray | None:
            return before.images[rows[row]] if rows[row] is not None and before.sound(rows[row]) else None

        _decode([source for source, *_ in header["files"]], tuple(size), header["resample"], put, old)
        digest = hashlib.sha256(head + sums.tobytes()).digest()
        _write(file, head, 0)
        _write(file, sums.tobytes() + digest, len(head) + count * step)


def _kind(header: dict) -> dict:
    return {name: value for name, value in header.items() if name != "files"}


def _decode(paths: Sequence, size: tuple[int, int], resample: str, put, old=lambda row: None) -> None:
    """Calls `put(row, image)` for every path in threads: Pillow releases the interpreter while it decodes."""

    def one(row: int) -> None:
        image = old(row)
        put(row, read_image(paths[row], size, resample) if image is None else image)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        waiting = [pool.submit(one, row) for row in range(len(paths))]
        try:
            for future in steps(waiting, "decoding"):
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _reserve(file: int, size: int) -> None:
    """Takes the space now: a disk without enough says so before an hour of decoding."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _write(file: int, data, at: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written
