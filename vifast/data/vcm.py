"""HITSZ-VCM: videos. Tracklets of frames by twelve cameras, visible and infrared.

root/info/{train,test}_name.txt            a frame a line, its path relative to root
root/info/track_{train,test}_info.txt      a tracklet a line: `modality first last identity camera`; modality is 1
                                           for infrared, else visible; first and last are lines of the frames' list
root/info/query_IDX.txt                    the lines of track_test_info.txt that are queries: the infrared ones
root/{Train,Test}/{identity:04d}/{rgb,ir}/D{camera}/...jpg
"""

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from vifast import _checks
from vifast.data import counts
from vifast.data.damage import Damage, named_by
from vifast.data.records import INFRARED, MODALITIES, VISIBLE, Dataset, Row, Samples, make_samples, relabel, require

INFRARED_CODE = 1
_CODES = {0: VISIBLE, INFRARED_CODE: INFRARED, 2: VISIBLE}
_FOLDERS = {"rgb": VISIBLE, "ir": INFRARED}


def load(
    root: str | os.PathLike,
    *,
    direction: str = "i2v",
    frames: int | None = None,
    min_frames: int = 1,
    level: str = "tracklet",
    on_damage: str = "error",
    decode: bool = False,
) -> Dataset:
    """Read HITSZ-VCM.

    Args:
        root: folder that holds `info`, `Train` and `Test`.
        direction: `"i2v"` searches visible tracklets with infrared queries, `"v2i"` the other way round.
        frames: images of a training tracklet, drawn once without replacement by Python's generator seeded with 0,
            infrared tracklets first (CKDA takes 3); None takes all frames.
        min_frames: shorter training tracklets are left out (CKDA: 12). Tests by tracklet leave that to their protocol.
        level: what tests compare, `"tracklet"`s by all their frames, or one `"image"` of each of at least `min_frames`
            frames, its first (CKDA).
        on_damage: `"error"` raises at the first thing that is wrong; `"skip"` logs it and leaves it out.
        decode: decode every image, which finds truncated files (about a millisecond an image).

    Returns:
        Dataset of frames with `tracklets` (the line of the tracklet in its list), in the order of the lists; one
        trial, the whole gallery.

    Raises:
        FileNotFoundError: a folder or file is missing; the message has its path (and the line that names it).
        ValueError: an argument is out of range, or a line is malformed; the message has its path and line.

    Source:
        Lin et al. 2022; specs ckda 1.2, 1.3, 9.
    """
    _checks.one_of("direction", direction, ("v2i", "i2v"))
    _checks.count("min_frames", min_frames)
    _checks.one_of("level", level, ("tracklet", "image"))
    if frames is not None:
        _checks.count("frames", frames)
        if frames > min_frames:
            raise ValueError(f"frames: expected at most min_frames ({min_frames}), got {frames}")
    damage = Damage("HITSZ-VCM", on_damage, decode)
    root = require(Path(root), "folder", "HITSZ-VCM")
    info = require(root / "info", "folder", "HITSZ-VCM")
    train, _ = _read_part(root, "train", damage)
    test, lines = _read_part(root, "test", damage)
    queries = _read_queries(info / "query_IDX.txt", lines, damage)
    listed = [row for row in test if row.modality == VISIBLE or row.tracklet in queries]
    test = damage.in_both_modalities(listed)
    kept = damage.not_tested(named_by(train), named_by(test))
    samples, identities = relabel(make_samples([row for row in train if row.identity in kept], tracklets=True))
    visible, infrared = (
        make_samples([row for row in test if row.modality == m], tracklets=True) for m in (VISIBLE, INFRARED)
    )
    query, gallery = (visible, infrared) if direction == "v2i" else (infrared, visible)
    dataset = Dataset("HITSZ-VCM", root, samples, query, gallery, identities, (np.arange(len(gallery)),))
    dataset = counts.checked(dataset, damage.notes)
    if level == "image":
        query, gallery = (_first_frames(side, min_frames) for side in (query, gallery))
        dataset = replace(dataset, query=query, gallery=gallery, trials=(np.arange(len(gallery)),))
    return replace(dataset, train=_draw(samples, frames, min_frames))


def _read_part(root: Path, part: str, damage: Damage) -> tuple[list[Row], dict[int, tuple[int, str]]]:
    """The frames of all tracklets, and the modality and place of every tracklet by its line."""
    path = root / "info" / f"track_{part}_info.txt"
    names = _read_names(root / "info" / f"{part}_name.txt", damage)
    last_name = max(names)
    rows, tracklets = [], {}
    for place, line in damage.lines(path):
        words = line.replace(",", " ").split()
        if len(words) != 5 or not all(word.isascii() and word.isdigit() for word in words):
            expected = "expected five numbers, `modality first last identity camera`"
            damage.found(ValueError(f"{place}: {expected}, got {line[:80]!r}"))
            continue
        code, first, last, identity, camera = map(int, words)
        if code not in _CODES:
            damage.found(ValueError(f"{place}: modality: expected 1 for infrared, 0 or 2 for visible, got {code}"))
            continue
        if not 1 <= first <= last <= last_name:
            expected = f"expected frames within the {last_name} lines of {part}_name.txt"
            damage.found(ValueError(f"{place}: {expected}, got {first} to {last}"))
            continue
        number, modality = int(place.rpartition(":")[2]), _CODES[code]
        frames = [names[n] for n in range(first, last + 1) if n in names]
        wrong = next((name for name in frames if _folder_modality(name) not in (None, modality)), None)
        if wrong is not None:
            damage.found(ValueError(f"{place}: modality {code} is {MODALITIES[modality]}, but has the frame {wrong}"))
            continue
        tracklets[number] = modality, place
        rows += [Row(root / name, identity, camera, modality, place, number) for name in frames]
    return damage.in_both_modalities(damage.readable(rows)), tracklets


def _read_names(path: Path, damage: Damage) -> dict[int, str]:
    """Frames by their line."""
    return {int(place.rpartition(":")[2]): line for place, line in damage.lines(path)}


def _folder_modality(name: str) -> int | None:
    """What the folders of a frame's path say, if anything."""
    return next((_FOLDERS[word] for word in name.lower().split("/")[:-1] if word in _FOLDERS), None)


def _read_queries(path: Path, tracklets: dict[int, tuple[int, str]], damage: Damage) -> set[int]:
    """The tracklets that are queries, which are all the infrared ones."""
    queries = set()
    for place, line in damage.lines(path):
        for word in line.replace(",", " ").split():
            number = int(word) if word.isascii() and word.isdigit() else 0
            if number not in tracklets:
                words = f"expected lines of track_test_info.txt that name a tracklet, got {word[:40]!r}"
                damage.found(ValueError(f"{place}: {words}"))
            elif tracklets[number][0] != INFRARED:
                words = f"query {number} is a visible tracklet: {tracklets[number][1]}"
                damage.found(ValueError(f"{place}: {words}"))
            else:
                queries.add(number)
    for number, (modality, place) in tracklets.items():
        if modality == INFRARED and number not in queries:
            damage.found(ValueError(f"{place}: an infrared tracklet that is no query of {path}"))
    return queries


def _first_frames(samples: Samples, min_frames: int) -> Samples:
    groups = _tracklets(samples, min_frames)
    if not groups:
        raise ValueError(f"min_frames: no test tracklet has {min_frames} frames")
    return samples.select(np.array([group[0] for group in groups]))


def _tracklets(samples: Samples, min_frames: int) -> list[np.ndarray]:
    """The rows of every tracklet of at least `min_frames`."""
    starts = np.flatnonzero(np.diff(samples.tracklets, prepend=-1))
    return [group for group in np.split(np.arange(len(samples)), starts[1:]) if len(group) >= min_frames]


def _draw(samples: Samples, frames: int | None, min_frames: int) -> Samples:
    """Tracklets of at least `min_frames`, with `frames` of their frames where given; the order stays."""
    groups = _tracklets(samples, min_frames)
    if frames is not None:
        generator = random.Random(0)
        groups.sort(key=lambda group: samples.modality[group[0]] == VISIBLE)  # infrared first, else in order
        groups = [np.array(generator.sample(group.tolist(), frames)) for group in groups]
    if not groups:
        raise ValueError(f"min_frames: no training tracklet has {min_frames} frames")
    return samples.select(np.sort(np.concatenate(groups)))
