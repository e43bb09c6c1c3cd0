"""Which of the four datasets a folder is, by what lies in it."""

import os
from pathlib import Path

from vifast.data import llcm, regdb, sysu, vcm
from vifast.data.records import require

NAMES = {"sysu": "SYSU-MM01", "regdb": "RegDB", "llcm": "LLCM", "vcm": "HITSZ-VCM"}
READERS = {"sysu": sysu.load, "regdb": regdb.load, "llcm": llcm.load, "vcm": vcm.load}
# Names of which a layout has all; a damaged tree is taken for the layout of which it has most.
MARKS = {
    "sysu": ("exp", *(f"cam{camera}" for camera in sysu.CAMERAS)),
    "regdb": (
        "Visible",
        "Thermal",
        *(f"idx/{part}_{kind}_1.txt" for part in ("train", "test") for kind in regdb.CAMERAS),
    ),
    "llcm": ("vis", "nir", "idx/train_vis.txt", "idx/train_nir.txt"),
    "vcm": ("Train", "Test", "info", "info/track_train_info.txt"),
}


def recognise(root: str | os.PathLike) -> str:
    """`"sysu"`, `"regdb"`, `"llcm"` or `"vcm"`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the folder has nothing of any layout, or as much of two.
    """
    root = require(Path(root), "folder", "dataset")
    share = {layout: sum((root / mark).exists() for mark in marks) / len(marks) for layout, marks in MARKS.items()}
    best = max(share, key=share.__getitem__)
    if list(share.values()).count(share[best]) > 1:
        known = "; ".join(f"{layout}: {', '.join(marks[:2])}, .." for layout, marks in MARKS.items())
        inside = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
        raise ValueError(f"{root}: expected the folder of a dataset ({known}), found {inside}")
    return best
