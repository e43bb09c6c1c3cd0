"""What a dataset's folder holds against what it should hold, in all variants of its protocol."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from vifast.data import counts, llcm
from vifast.data.layouts import NAMES, READERS, recognise


@dataclass(frozen=True)
class Inspection:
    """`rows` are (name, expected, found), None where a number is not known; `source` says whose are the expected."""

    dataset: str
    root: Path
    rows: tuple[tuple[str, int | None, int | None], ...]
    source: str
    damage: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Nothing is damaged, and every number is the expected one."""
        return not self.damage and all(expected in (None, found) for _, expected, found in self.rows)


def inspect(root: str | os.PathLike, *, decode: bool = True) -> Inspection:
    """Recognise the dataset at `root` and read it: every mode, split or layout that it has.

    Args:
        root: folder of a dataset.
        decode: decode every image once, which finds truncated files (about a millisecond an image).

    Raises:
        FileNotFoundError, ValueError: no such folder, or not one of a dataset.
    """
    root = Path(root)
    layout = recognise(root)
    rows: dict[str, tuple[int | None, int | None]] = {}
    damage: dict[str, None] = {}  # an ordered set: variants find the same things again
    wanted = counts.Expected("published", {})
    log = logging.getLogger("vifast.data")
    before, log.disabled = log.disabled, True  # all that it would say is in the result
    try:
        wanted = counts.expected(NAMES[layout], root)
        for number, (name, options) in enumerate(_variants(layout, root).items()):
            try:
                dataset = READERS[layout](root, on_damage="skip", decode=decode and number == 0, **options)
            except (ValueError, OSError) as error:
                damage[str(error)] = None
                continue
            damage |= dict.fromkeys(dataset.damage)
            for key, found in dataset.counts.items():
                expected = wanted.counts.get(key)
                if key not in rows:
                    rows[key] = expected, found
                elif found != rows[key][1] and expected not in (None, found):
                    rows[f"{name}: {key}"] = expected, found
    except ValueError as error:  # the expected numbers themselves
        damage[str(error)] = None
    finally:
        log.disabled = before
    found_none = 0 if rows else None  # nothing was read, or nothing of that name
    for key, expected in wanted.counts.items():
        rows.setdefault(key, (expected, found_none))
    table = tuple((name, *numbers) for name, numbers in rows.items())
    return Inspection(NAMES[layout], root, table, wanted.source, tuple(damage))


def _variants(layout: str, root: Path) -> dict[str, dict]:
    """Options of the reader by name, the usual ones first."""
    if layout == "sysu":
        modes = [(mode, shots) for mode in ("all", "indoor") for shots in (1, 10)]
        return {f"{mode}, {shots} shots": {"mode": mode, "shots": shots} for mode, shots in modes}
    if layout == "regdb":
        return {f"split {split}": {"split": split} for split in range(1, 11)}
    if layout == "llcm":
        return {f"test images by {by}": {"layout": by} for by in reversed(llcm.layouts(root))}
    return {"": {}}
