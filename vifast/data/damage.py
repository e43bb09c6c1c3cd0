"""What is wrong with a dataset on disk: an error at once, or, where the user chose so, a logged skip."""

import logging
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vifast import _checks
from vifast.data.images import open_image
from vifast.data.records import MODALITIES, Row, require

ON_DAMAGE = ("error", "skip")
_DECODERS = 4  # threads; Pillow releases the interpreter while it decodes
_log = logging.getLogger("vifast.data")


class Damage:
    """Collects what a reader finds wrong with `dataset`.

    Args:
        dataset: its name, for the messages.
        on_damage: `"error"` raises at the first thing found; `"skip"` logs it (logger `vifast.data`, level warning),
            keeps it in `notes`, and the reader goes on without it.
        decode: decode every image to its end, which finds truncated files; otherwise only look whether it is there.

    Raises:
        ValueError: another `on_damage`.
    """

    def __init__(self, dataset: str, on_damage: str, decode: bool):
        _checks.one_of("on_damage", on_damage, ON_DAMAGE)
        _checks.flag("decode", decode)
        self.dataset, self.on_damage, self.decode = dataset, on_damage, decode
        self.notes: list[str] = []

    def found(self, error: ValueError | OSError) -> None:
        if self.on_damage == "error":
            raise error
        self.notes.append(str(error))
        _log.warning("left out: %s", error)

    def folder(self, path: Path) -> bool:
        """Whether the folder is there."""
        try:
            require(path, "folder", self.dataset)
        except FileNotFoundError as error:
            self.found(error)
            return False
        return True

    def lines(self, path: Path) -> Iterator[tuple[str, str]]:
        """`path:line` and text of the lines that are not empty. The file itself cannot be left out.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it has no line.
        """
        empty = True
        for number, raw in enumerate(require(path, "file", self.dataset).read_bytes().splitlines(), start=1):
            try:
                line = raw.decode().strip()
            except UnicodeDecodeError:
                self.found(ValueError(f"{path}:{number}: expected UTF-8 text, got {raw[:40]!r}"))
                continue
            if line:
                empty = False
                yield f"{path}:{number}", line
        if empty:
            raise ValueError(f"{path}:1: the list is empty")

    def listed(self, path: Path) -> Iterator[tuple[str, str, int]]:
        """Place, relative path and label of every line `relative/path label`; a path that comes again is damage."""
        first: dict[str, str] = {}
        for place, line in self.lines(path):
            name, _, label = line.rpartition(" ")
            if not name or not (label.isascii() and label.isdigit()):
                self.found(ValueError(f"{place}: expected `relative/path label`, got {line[:80]!r}"))
            elif name in first:
                self.found(ValueError(f"{place}: {name} is listed twice, first at {first[name]}"))
            else:
                first[name] = place
                yield place, name, int(label)

    def identities(self, path: Path) -> dict[int, str]:
        """The comma-separated identity numbers of a file's first line, ascending, with their place."""
        place, line = next(self.lines(path))
        found = {}
        for word in line.rstrip(",").split(","):
            if word.strip().isascii() and word.strip().isdigit():
                found[int(word)] = place
            else:
                words = f"expected comma-separated identity numbers, got {word.strip()[:40]!r} in {line[:80]!r}"
                self.found(ValueError(f"{place}: {words}"))
        return dict(sorted(found.items()))

    def readable(self, rows: Sequence[Row]) -> list[Row]:
        """The rows whose images are there and, with `decode`, can be decoded to their end."""
        if self.decode:
            with ThreadPoolExecutor(_DECODERS) as pool:
                errors = list(pool.map(_fault, rows, [True] * len(rows)))
        else:
            errors = [_fault(row, False) for row in rows]
        kept = []
        for row, error in zip(rows, errors, strict=True):
            if error is None:
                kept.append(row)
            else:
                self.found(error)
        return kept

    def in_both_modalities(self, rows: Sequence[Row], wanted: Mapping[int, str] | None = None) -> list[Row]:
        """The rows of identities that have visible and infrared images.

        `wanted` maps identities to the place that names them, for those that may have no image at all.

        Raises:
            ValueError: nobody is left.
        """
        named = dict(wanted or {})
        seen: dict[int, dict[int, Row]] = {identity: {} for identity in named}
        for row in rows:
            named.setdefault(row.identity, row.place)
            seen.setdefault(row.identity, {}).setdefault(row.modality, row)
        lacking = set()
        for identity, kinds in seen.items():
            if len(kinds) == len(MODALITIES):
                continue
            lacking.add(identity)
            words = f"{self.dataset}: {named[identity]}: identity {identity} has no"
            if kinds:
                ((modality, row),) = kinds.items()
                words += f" {MODALITIES[1 - modality]} image, only {MODALITIES[modality]} ones such as {row.path}"
            else:
                words += " image"
            self.found(ValueError(words))
        kept = [row for row in rows if row.identity not in lacking]
        if not kept:
            first = f"; left out first: {self.notes[0]}" if self.notes else ""
            raise ValueError(f"{self.dataset}: no identity is left that has visible and infrared images{first}")
        return kept

    def not_tested(self, train: Mapping[int, str], test: Mapping[int, str]) -> set[int]:
        """The identities of `train` that are not in `test`; both map identities to the place that names them."""
        for identity in train.keys() & test.keys():
            words = f"identity {identity} is for training here and for testing at {test[identity]}"
            self.found(ValueError(f"{train[identity]}: {words}"))
        return set(train.keys() - test.keys())


def named_by(rows: Iterable[Row]) -> dict[int, str]:
    """The place that names each identity first."""
    places: dict[int, str] = {}
    for row in rows:
        places.setdefault(row.identity, row.place)
    return places


def _fault(row: Row, decode: bool) -> ValueError | OSError | None:
    """What is wrong with the image of a row."""
    place = f"{row.place}: " if row.place else ""
    try:
        found = row.path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return FileNotFoundError(f"{place}image not found: {row.path}")
    except (OSError, ValueError) as error:  # no permission; a name that no file can have
        return ValueError(f"{place}image cannot be read: {str(row.path)[:200]!r} ({error})")
    if not stat.S_ISREG(found.st_mode):
        return FileNotFoundError(f"{place}image not found, no file: {row.path}")
    if found.st_size == 0:
        return ValueError(f"{place}image is an empty file: {row.path}")
    if decode:
        try:
            open_image(row.path)
        except ValueError as error:
            return ValueError(f"{place}{error}")
    return None
