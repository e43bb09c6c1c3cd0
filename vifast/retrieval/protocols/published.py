"""SYSU-MM01, RegDB, LLCM and HITSZ-VCM as they are evaluated in the literature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vifast import _checks, _draws
from vifast.retrieval._arguments import codes_of, positive
from vifast.retrieval.protocols._score import labelled, ranked, result_of
from vifast.retrieval.protocols._sets import Side, directed
from vifast.retrieval.protocols.result import ProtocolResult
from vifast.retrieval.trials import rising_rows

GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}  # of SYSU-MM01
SHOTS = {1: "single-shot", 10: "multi-shot"}
REGDB = {
    "benchmark": ({"metric": "cosine", "exclude": "none", "cmc": "plain"}, ""),
    "idkl": ({"metric": "sqeuclidean", "exclude": "none", "cmc": "identity"}, ", IDKL's CMC among identities"),
}
LLCM = {
    "benchmark": ({"metric": "cosine", "exclude": "same_id_camera", "cmc": "identity"}, "benchmark"),
    "ckda": ({"metric": "cosine", "exclude": "none", "cmc": "plain"}, "CKDA's variant (nothing left out)"),
    "idkl": (
        {"metric": "sqeuclidean", "exclude": "none", "cmc": "identity"},
        "IDKL's variant (whole gallery, not the benchmark)",
    ),
}
VCM = {
    "ckda": ({"metric": "cosine", "exclude": "none", "cmc": "plain"}, "CKDA's protocol"),
    "vi-lreid": (
        {"metric": "cosine", "exclude": "same_camera", "cmc": "identity"},
        "earlier lifelong protocol (same camera left out)",
    ),
}
LEVELS = {"image": 12, "tracklet": 1}  # fewest frames of a tracklet that counts


def sysu(
    query,
    gallery,
    query_ids,
    gallery_ids,
    query_cams,
    gallery_cams,
    *,
    mode: str = "all",
    shots: int = 1,
    draw: str | Sequence = "random",
    permutations=None,
    image_numbers=None,
    metric: str = "cosine",
    topk: int = 20,
    rerank: Mapping | None = None,
) -> ProtocolResult:
    """SYSU-MM01: infrared queries, ten galleries of visible images; a query of camera 3 does not search camera 2.

    CMC counts places among identities, AP and INP among images. Indoor search ignores the queries of people whom
    cameras 1 and 2 never saw.

    Args:
        query: [Q, D] features of cameras 3 and 6.
        gallery: [G, D] features of all visible test images, from which the trials draw.
        query_ids: [Q] identities.
        gallery_ids: [G] likewise.
        query_cams: [Q] cameras.
        gallery_cams: [G] likewise.
        mode: ``"all"`` searches cameras 1, 2, 4 and 5, ``"indoor"`` 1 and 2.
        shots: gallery images of a person by a camera: 1 (single-shot) or 10 (multi-shot).
        draw: ``"random"`` draws with Python's generator seeded by the trial, identities ascending, then cameras (AGW
            and most others; ten shots are ours, in the same order without replacement); ``"published"`` takes the
            dataset's ``rand_perm_cam`` (IDKL); or the trials themselves, each the rows of its gallery.
        permutations: for ``"published"``: the 6 x 1 cell ``rand_perm_cam`` as read from its file, or a mapping from
            (camera, identity) to the table [10, n] of image numbers.
        image_numbers: [G] for ``"published"``: an image's number among those of its person and camera; None counts
            them from 1 in the order of the rows, which are files sorted by name.
        metric: as in :func:`vifast.retrieval.evaluate`.
        topk: length of the CMC curve.
        rerank: None, or arguments of :func:`vifast.retrieval.rerank` (``{}``: its defaults), by which every trial's
            gallery is re-ranked before it is scored. ``queries_only`` is True here unless they say otherwise (IDKL).

    Returns:
        :class:`ProtocolResult` of the ten trials.

    Raises:
        TypeError: features that are not floating point, ids or cameras that are not integers.
        ValueError: shapes that do not fit, an unknown option, permutations that are missing or name an image that does
            not exist, no valid query in a trial.

    Memory:
        As :func:`vifast.retrieval.evaluate_trials`.

    Source:
        Wu et al. 2017; draws and exclusion: specs idkl 9, 10, dakd 9, ckda 9.

    Example:
        >>> import torch
        >>> feat, ids = torch.eye(4), torch.tensor([1, 1, 2, 2])
        >>> result = sysu(feat, feat, ids, ids, torch.tensor([3, 6, 3, 6]), torch.tensor([1, 4, 2, 5]))
        >>> len(result.trials), result.trials[0].num_valid
        (10, 4)
    """
    _checks.one_of("mode", mode, tuple(GALLERY_CAMERAS))
    if shots not in SHOTS:
        raise ValueError(f"shots: expected 1 or 10, got {shots!r}")
    queries = Side.of("query", query, query_ids, query_cams)
    pool = Side.of("gallery", gallery, gallery_ids, gallery_cams)
    queries.need_cams("SYSU-MM01")
    ids, cams = pool.ids.numpy(), pool.need_cams("SYSU-MM01").numpy()
    cameras = GALLERY_CAMERAS[mode]
    if isinstance(draw, str):
        _checks.one_of("draw", draw, ("random", "published"))
        words = {"random": "galleries drawn by random.seed(trial)", "published": "galleries of rand_perm_cam"}[draw]
        if draw == "random":
            trials = _draws.at_random(ids, cams, cameras=cameras, shots=shots)
        else:
            numbers = _image_numbers(image_numbers, pool)
            trials = _draws.by_permutation(
                ids, cams, numbers, _tables(permutations), cameras=cameras, shots=shots, missing=_no_image
            )
    else:
        trials, words = [rising_rows(f"draw[{t}]", rows, len(ids)) for t, rows in enumerate(draw)], "given galleries"
        for t, rows in enumerate(trials):
            if not np.isin(cams[rows], cameras).all():
                raise ValueError(f"draw[{t}]: expected rows of cameras {', '.join(map(str, cameras))} (mode={mode!r})")
    name = f"SYSU-MM01, {mode}-search, {SHOTS[shots]}, {words}"
    settings = {"metric": metric, "exclude": "sysu", "cmc": "identity"}
    rerank = {"queries_only": True, **rerank} if isinstance(rerank, Mapping) else rerank
    return result_of(name, settings, queries, pool, trials, topk, rerank, {"mode": mode, "shots": shots})


def regdb(
    visible,
    infrared,
    visible_ids,
    infrared_ids,
    *,
    direction: str = "v2i",
    protocol: str = "benchmark",
    topk: int = 20,
    rerank: Mapping | None = None,
) -> ProtocolResult:
    """RegDB: the whole other modality is the gallery, nothing is left out; the mean over splits.

    Args:
        visible: [N, D] features of the visible test images of one split, or a list of such, one a split.
        infrared: likewise of the thermal images.
        visible_ids: [N] identities, or a list of such.
        infrared_ids: likewise.
        direction: ``"v2i"`` searches infrared images with visible queries, ``"i2v"`` the other way round.
        protocol: ``"benchmark"`` compares by cosine and reports the plain CMC (AGW, DAKD, CKDA; ten splits, each with
            the network that was trained on it); ``"idkl"`` takes squared Euclidean distances of the features as they
            are, CMC among identities, and reports split 1.
        topk: length of the CMC curve.
        rerank: None, or arguments of :func:`vifast.retrieval.rerank`, by which the gallery is re-ranked first.

    Returns:
        :class:`ProtocolResult` with a trial for every split.

    Raises:
        TypeError: features that are not floating point, ids that are not integers.
        ValueError: shapes or numbers of splits that do not fit, an unknown option, no valid query in a split.

    Memory:
        As :func:`vifast.retrieval.evaluate`.

    Source:
        Nguyen et al. 2017; specs idkl 10, dakd 9, ckda 9.

    Example:
        >>> import torch
        >>> feat, ids = torch.eye(3), torch.tensor([4, 7, 9])
        >>> regdb([feat] * 10, [feat] * 10, [ids] * 10, [ids] * 10).rank1
        1.0
    """
    _checks.one_of("protocol", protocol, tuple(REGDB))
    settings, words = REGDB[protocol]
    columns = {"visible": visible, "infrared": infrared, "visible_ids": visible_ids, "infrared_ids": infrared_ids}
    if not isinstance(visible, (list, tuple)):
        columns = {name: [value] for name, value in columns.items()}
    splits = len(columns["visible"])
    for name, value in columns.items():
        if not isinstance(value, (list, tuple)) or len(value) != splits or splits == 0:
            got = len(value) if isinstance(value, (list, tuple)) else type(value).__name__
            raise ValueError(f"{name}: expected a list of at least one split, as many as visible ({splits}), got {got}")
    results, sizes = [], []
    for v, i, v_ids, i_ids in zip(*columns.values(), strict=True):
        query, gallery, way = directed(direction, Side.of("visible", v, v_ids), Side.of("infrared", i, i_ids))
        results += ranked(query, gallery, None, settings, topk, rerank)
        sizes.append(len(gallery.feat))
    names = [f"split {k + 1}" for k in range(splits)]
    return labelled(f"RegDB, {way}{words}", settings, results, names, sizes, rerank)


def llcm(
    visible,
    infrared,
    visible_ids,
    infrared_ids,
    visible_cams=None,
    infrared_cams=None,
    *,
    direction: str = "v2i",
    protocol: str = "benchmark",
    topk: int = 20,
    rerank: Mapping | None = None,
) -> ProtocolResult:
    """LLCM, by the benchmark's protocol or by one of two that are not comparable with it.

    Args:
        visible: [N, D] features of all visible test images.
        infrared: [M, D] features of all infrared test images.
        visible_ids: [N] identities.
        infrared_ids: [M] likewise.
        visible_cams: [N] cameras, needed by all but ``"idkl"``.
        infrared_cams: [M] likewise.
        direction: ``"v2i"`` searches infrared images with visible queries, ``"i2v"`` the other way round.
        protocol: ``"benchmark"`` (DEEN): ten galleries of one random image per person and camera, drawn by Python's
            generator seeded by the trial, identities ascending, then cameras; cosine; a query leaves out images of its
            own person by its own camera; CMC among identities. ``"ckda"``: the same galleries, nothing left out,
            plain CMC. ``"idkl"``: the whole other modality once, squared Euclidean distances of the features as they
            are, nothing left out, CMC among identities.
        topk: length of the CMC curve.
        rerank: as in :func:`regdb`.

    Returns:
        :class:`ProtocolResult` whose ``protocol`` names the variant.

    Raises:
        TypeError: features that are not floating point, ids or cameras that are not integers.
        ValueError: shapes that do not fit, missing cameras, an unknown option, no valid query in a trial.

    Memory:
        As :func:`vifast.retrieval.evaluate_trials`.

    Source:
        Zhang and Wang 2023 (DEEN); specs idkl 10, ckda 9.

    Example:
        >>> import torch
        >>> feat, ids, cams = torch.eye(4), torch.tensor([1, 1, 2, 2]), torch.tensor([1, 2, 1, 2])
        >>> llcm(feat, feat, ids, ids, protocol="idkl").protocol
        "LLCM, visible to infrared, IDKL's variant (whole gallery, not the benchmark)"
        >>> llcm(feat, feat, ids, ids, cams, cams).trials[9].num_valid
        4
    """
    _checks.one_of("protocol", protocol, tuple(LLCM))
    settings, words = LLCM[protocol]
    query, gallery, way = directed(
        direction,
        Side.of("visible", visible, visible_ids, visible_cams),
        Side.of("infrared", infrared, infrared_ids, infrared_cams),
    )
    trials = None
    if protocol != "idkl":
        query.need_cams("LLCM's benchmark")
        trials = _draws.at_random(gallery.ids.numpy(), gallery.need_cams("LLCM's galleries").numpy())
    return result_of(f"LLCM, {way}, {words}", settings, query, gallery, trials, topk, rerank, {})


def vcm(
    visible,
    infrared,
    visible_ids,
    infrared_ids,
    visible_cams=None,
    infrared_cams=None,
    *,
    visible_tracklets=None,
    infrared_tracklets=None,
    level: str = "tracklet",
    direction: str = "v2i",
    protocol: str = "ckda",
    min_frames: int | None = None,
    topk: int = 20,
    rerank: Mapping | None = None,
) -> ProtocolResult:
    """HITSZ-VCM: tracklets by the mean of their frames' features, or by their first frame as image.

    Args:
        visible: [N, D] features of visible frames, those of a tracklet in the order of time.
        infrared: [M, D] features of infrared frames.
        visible_ids: [N] identities, one for all frames of a tracklet.
        infrared_ids: [M] likewise.
        visible_cams: [N] cameras, one for all frames of a tracklet; needed by ``"vi-lreid"``.
        infrared_cams: [M] likewise.
        visible_tracklets: [N] any integers, equal for the frames of a tracklet. With both None and ``"image"`` the
            frames are compared as they are given: somebody else has chosen them.
        infrared_tracklets: [M] likewise.
        level: ``"tracklet"`` (mean of frame features) or ``"image"`` (the first frame alone).
        direction: ``"v2i"`` searches infrared tracklets with visible queries, ``"i2v"`` (CKDA) the other way round.
        protocol: ``"ckda"`` leaves nothing out and reports the plain CMC; ``"vi-lreid"``, the earlier lifelong
            benchmark, leaves out the query's camera and reports CMC among identities.
        min_frames: shorter tracklets do not count; None: 12 at image level (CKDA), 1 at tracklet level.
        topk: length of the CMC curve.
        rerank: as in :func:`regdb`.

    Returns:
        :class:`ProtocolResult` with one trial.

    Raises:
        TypeError: features that are not floating point; ids, cameras or tracklets that are not integers.
        ValueError: shapes that do not fit, a tracklet of two people or cameras, missing cameras, an unknown option, no
            tracklet that is long enough, no valid query.

    Memory:
        As :func:`vifast.retrieval.evaluate`, and a row for every tracklet.

    Source:
        Lin et al. 2022; spec ckda 9.

    Example:
        >>> import torch
        >>> feat, ids = torch.eye(2).repeat_interleave(3, 0), torch.tensor([1, 1, 1, 2, 2, 2])
        >>> result = vcm(feat, feat, ids, ids, visible_tracklets=ids, infrared_tracklets=ids)
        >>> result.rank1, result.sizes
        (1.0, (2,))
    """
    _checks.one_of("protocol", protocol, tuple(VCM))
    _checks.one_of("level", level, tuple(LEVELS))
    settings, words = VCM[protocol]
    frames = LEVELS[level] if min_frames is None else positive("min_frames", min_frames)
    sides = (
        Side.of("visible", visible, visible_ids, visible_cams),
        Side.of("infrared", infrared, infrared_ids, infrared_cams),
    )
    if settings["exclude"] != "none":
        for side in sides:
            side.need_cams(f"protocol={protocol!r}")
    labels = (visible_tracklets, infrared_tracklets)
    chosen = all(of is None for of in labels) and level == "image"
    words_of_frames = "frames as given" if chosen else f"tracklets of at least {frames} frames"
    if not chosen:
        sides = [side.tracklets(of, level=level, min_frames=frames) for side, of in zip(sides, labels, strict=True)]
    query, gallery, way = directed(direction, *sides)
    name = f"HITSZ-VCM, {level} level, {words_of_frames}, {way}, {words}"
    options = {"level": level} if chosen else {"level": level, "min_frames": frames}
    return result_of(name, settings, query, gallery, None, topk, rerank, options)


def _image_numbers(numbers, pool: Side) -> np.ndarray:
    if numbers is not None:
        return codes_of("image_numbers", numbers, "gallery", len(pool.feat)).numpy()
    counted, seen = np.empty(len(pool.feat), dtype=np.int64), {}
    for row, key in enumerate(zip(pool.cams.tolist(), pool.ids.tolist(), strict=True)):
        counted[row] = seen[key] = seen.get(key, 0) + 1
    return counted


def _tables(permutations):
    """``order(camera, identity)`` for the draw, of a mapping or of MATLAB's cell."""
    if isinstance(permutations, Mapping):
        return lambda camera, identity: permutations.get((camera, identity), np.zeros((_draws.NUM_TRIALS, 0)))
    if not isinstance(permutations, np.ndarray) or permutations.dtype != object or permutations.size != 6:
        what = getattr(permutations, "shape", type(permutations).__name__)
        wanted = 'a mapping or the 6 x 1 cell rand_perm_cam for draw="published"'
        raise ValueError(f"permutations: expected {wanted}, got {what}")
    return _draws.cell_table(permutations)


def _no_image(camera: int, identity: int, number: int) -> str:
    return f"permutations: name image {number} of identity {identity} by camera {camera}, which gallery does not have"
