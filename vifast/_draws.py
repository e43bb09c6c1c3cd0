"""Gallery draws of the published protocols: the gallery rows of every trial, each as a rising int64 array."""

import random
from collections.abc import Callable, Sequence

import numpy as np

NUM_TRIALS = 10  # rows of every published permutation


def at_random(
    ids: np.ndarray, cams: np.ndarray, *, cameras: Sequence[int] | None = None, shots: int = 1, trials: int = NUM_TRIALS
) -> tuple[np.ndarray, ...]:
    """As AGW draws: Python's generator seeded by the trial, identities ascending, then cameras, one image each.

    Where ``shots`` is more than 1 it draws as many without replacement (all where there are fewer), in the same order.
    The images of one identity and camera are a list in the order of their rows. Empty groups are left out and draw
    nothing.

    Args:
        ids: [G] identities.
        cams: [G] cameras.
        cameras: those that take part, in this order; None for all, ascending.
        shots: images of an identity by a camera.
        trials: number of draws, seeded 0, 1, ..
    """
    cameras = np.unique(cams).tolist() if cameras is None else cameras
    groups = [
        rows.tolist()
        for identity in np.unique(ids)
        for camera in cameras
        if len(rows := np.flatnonzero((ids == identity) & (cams == camera)))
    ]
    drawn = []
    for trial in range(trials):
        generator = random.Random(trial)
        if shots == 1:
            rows = [generator.choice(group) for group in groups]
        else:
            rows = [row for group in groups for row in generator.sample(group, min(shots, len(group)))]
        drawn.append(np.sort(np.array(rows, dtype=np.int64)))
    return tuple(drawn)


def by_permutation(
    ids: np.ndarray,
    cams: np.ndarray,
    numbers: np.ndarray,
    order: Callable[[int, int], np.ndarray],
    *,
    cameras: Sequence[int],
    shots: int,
    missing: Callable[[int, int, int], str],
) -> tuple[np.ndarray, ...]:
    """As IDKL draws: trial t takes the first ``shots`` image numbers of row t of every identity's and camera's table.

    Args:
        ids: [G] identities.
        cams: [G] cameras.
        numbers: [G] an image's number among those of its identity and camera.
        order: the table of a camera and an identity, ``[10, n]`` numbers; n is 0 for somebody who is not there.
        cameras: those that take part.
        shots: images of an identity by a camera.
        missing: the words for an image (camera, identity, number) that a table names and nobody has.

    Raises:
        ValueError: a table of another shape; an image that does not exist.
    """
    row_of = {key: row for row, key in enumerate(zip(cams.tolist(), ids.tolist(), numbers.tolist(), strict=True))}
    drawn: list[list[int]] = [[] for _ in range(NUM_TRIALS)]
    for camera in cameras:
        for identity in np.unique(ids).tolist():
            table = np.asarray(order(camera, identity))
            if table.ndim != 2 or len(table) != NUM_TRIALS:
                where = f"camera {camera}, identity {identity}"
                raise ValueError(f"{where}: expected {NUM_TRIALS} x n numbers, got shape {table.shape}")
            for rows, chosen in zip(drawn, table[:, :shots].astype(int).tolist(), strict=True):
                for number in chosen:
                    if (camera, identity, number) not in row_of:
                        raise ValueError(missing(camera, identity, number))
                    rows.append(row_of[camera, identity, number])
    return tuple(np.sort(np.array(rows, dtype=np.int64)) for rows in drawn)


def cell_table(cells: np.ndarray) -> Callable[[int, int], np.ndarray]:
    """The table of a camera and an identity in MATLAB's 6 x 1 cell ``rand_perm_cam``."""

    def order(camera: int, identity: int) -> np.ndarray:
        tables = cells.flat[camera - 1].reshape(-1)
        return tables[identity - 1] if identity <= len(tables) else np.zeros((NUM_TRIALS, 0))

    return order
