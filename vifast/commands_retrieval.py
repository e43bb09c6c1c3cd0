"""The commands about features: evaluate, search and rerank. ``vifast.commands`` registers them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import vifast

if TYPE_CHECKING:
    from vifast.retrieval.feature_files import FeatureFile
    from vifast.retrieval.protocols import ProtocolResult

PROTOCOLS = ("plain", "sysu", "regdb", "llcm", "vcm")
FIRST_WAY = {"regdb": "v2i", "llcm": "i2v", "vcm": "i2v"}
SPLIT, NUM_SPLITS = "{split}", 10
SEARCHED = 1024  # queries between two movements of the bar
_console = Console()

Source = Annotated[Path, typer.Argument(metavar="RUN|QUERY", help="Folder of a run, or features of the queries.")]
Gallery = Annotated[Path | None, typer.Argument(help="Features of the gallery.")]
Data = Annotated[Path | None, typer.Option(help="Root folder of the dataset, for a run.")]
Checkpoint = Annotated[str | None, typer.Option(help="Of a run: last or best.", show_default="last")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")]
Html = Annotated[Path | None, typer.Option("--html", help="Also write a page to this file.")]
Metric = Annotated[str, typer.Option(help="cosine, euclidean, sqeuclidean or dot.")]
Exclude = Annotated[str, typer.Option(help="Gallery rows left out: none, same_camera, same_id_camera or sysu.")]
Cmc = Annotated[str, typer.Option(help="First hit among rows (plain) or identities (identity).")]
Topk = Annotated[int, typer.Option(min=1, help="Length of the CMC curve.")]


def evaluate(
    source: Source,
    gallery: Gallery = None,
    data: Data = None,
    checkpoint: Checkpoint = None,
    protocol: Annotated[str, typer.Option(help=f"Of features: {', '.join(PROTOCOLS)}.")] = "plain",
    variant: Annotated[str | None, typer.Option(help="Of regdb, llcm or vcm, for example idkl or ckda.")] = None,
    direction: Annotated[
        str | None, typer.Option(help="Of these: v2i, i2v, or both; for v2i and both QUERY is visible.")
    ] = None,
    mode: Annotated[str, typer.Option(help="Of sysu: all or indoor.")] = "all",
    shots: Annotated[int, typer.Option(help="Of sysu: 1 or 10.")] = 1,
    permutations: Annotated[
        Path | None, typer.Option(help="Of sysu: rand_perm_cam.mat, for the published galleries.")
    ] = None,
    level: Annotated[str, typer.Option(help="Of vcm: tracklet or image.")] = "tracklet",
    metric: Metric = "cosine",
    exclude: Exclude = "none",
    cmc: Cmc = "plain",
    topk: Topk = 20,
    reranked: Annotated[
        bool, typer.Option("--rerank", help="Re-rank every gallery by k-reciprocal neighbours first.")
    ] = False,
    json_file: Json = None,
    html: Html = None,
) -> None:
    """Score a run on a dataset, or feature files by a published protocol.

    RegDB's ten splits are ten pairs of files: write {split} in both names. --metric is of plain and sysu, --exclude
    and --cmc are of plain.
    """
    from vifast import retrieval_output as output

    start = time.perf_counter()
    with _progress():
        if _is_run(source, gallery, data, checkpoint):
            from vifast.train.lifelong import extract_any

            results = [extract_any(source, data, which=checkpoint or "last").score({} if reranked else None)]
            facts = {"run": str(source), "checkpoint": checkpoint or "last", "dataset": str(data)}
        else:
            plain = {"metric": metric, "exclude": exclude, "cmc": cmc}
            options = {"topk": topk, "rerank": {} if reranked else None}
            results = _by_protocol(
                source, gallery, protocol, variant, direction, mode, shots, permutations, level, plain, options
            )
            facts = {"query": str(source), "gallery": str(gallery)}
    for result in results:
        output.print_result(_console, result)
    if json_file is not None:
        found = [result.to_dict() for result in results]
        output.write_json(json_file, found[0] if len(found) == 1 else {"results": found})
    if html is not None:
        output.write_evaluation(html, results, facts | {"time": f"{time.perf_counter() - start:.1f} s"})


def search(
    source: Source,
    gallery: Gallery = None,
    data: Data = None,
    checkpoint: Checkpoint = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours of every query.")] = 10,
    metric: Metric = "cosine",
    exclude: Exclude = "none",
    out: Annotated[Path | None, typer.Option(help=".npz to write: dist [Q, k] and index [Q, k].")] = None,
    json_file: Json = None,
    html: Html = None,
) -> None:
    """Find the nearest gallery rows of every query, exactly: of feature files, or of a run's test images."""
    import torch

    from vifast import retrieval
    from vifast import retrieval_output as output

    output.check_suffix("out", out, ".npz")
    start = time.perf_counter()
    one, other, _ = _sides(source, gallery, data, checkpoint)
    left_out = _left_out(one, other, exclude)
    parts = []
    with _bar() as bar:
        task = bar.add_task("searching", total=len(one.features))
        for first in range(0, len(one.features), SEARCHED):
            rows = one.features[first : first + SEARCHED]
            block = None if left_out is None else _moved(left_out, first)
            parts.append(retrieval.search(rows, other.features, k, metric=metric, exclude=block))
            bar.advance(task, len(rows))
    dist, index = (torch.cat(part) for part in zip(*parts, strict=True))
    facts = {
        "query": f"{one.path}, {len(one.features)} rows",
        "gallery": f"{other.path}, {len(other.features)} rows of {other.features.size(1)}",
        "metric": metric,
        "left out": exclude,
        "time": f"{time.perf_counter() - start:.1f} s",
    }
    _console.print(f"{k} of {len(other.features)} rows for {len(dist)} queries in {facts['time']}", highlight=False)
    if out is not None:
        output.save_arrays(out, dist=dist, index=index)
    if json_file is not None:
        found = {"metric": metric, "k": k, "exclude": exclude, "dist": dist.tolist(), "index": index.tolist()}
        output.write_json(json_file, found)
    if html is not None:
        output.write_neighbours(html, one, other, dist, index, facts)


def rerank(
    source: Source,
    gallery: Gallery = None,
    data: Data = None,
    checkpoint: Checkpoint = None,
    out: Annotated[Path | None, typer.Option(help="To write: .npy of all distances, .npz with --topk.")] = None,
    k1: Annotated[int, typer.Option(help="Neighbours that must be mutual.")] = 20,
    k2: Annotated[int, typer.Option(help="Rows whose weights are averaged.")] = 6,
    lambda_: Annotated[float, typer.Option("--lambda", help="Weight of the original distance.")] = 0.3,
    metric: Annotated[str, typer.Option(help="Of files: sqeuclidean, euclidean or cosine.")] = "sqeuclidean",
    queries_only: Annotated[
        bool, typer.Option("--queries-only", help="All neighbours are queries; always so in SYSU-MM01's protocol.")
    ] = False,
    precision: Annotated[str, typer.Option(help="float32, or reference: the published rounding.")] = "float32",
    topk: Annotated[int | None, typer.Option(min=1, help="Keep the nearest so many of every query only.")] = None,
    exclude: Exclude = "none",
    cmc: Cmc = "plain",
    json_file: Json = None,
    html: Html = None,
) -> None:
    """Re-rank a gallery by k-reciprocal neighbours, of feature files or of a run's test images.

    A run is scored before and after by its dataset's protocol, whose galleries are re-ranked one by one. So are
    files that both have ids, as one gallery, unless --topk leaves distances out.
    """
    from vifast import retrieval
    from vifast import retrieval_output as output

    output.check_suffix("out", out, ".npy" if topk is None else ".npz")
    one, other, extraction = _sides(source, gallery, data, checkpoint)
    labels = None
    if extraction is None and topk is None and "ids" in one.labels and "ids" in other.labels:
        labels = _labels(one, other, exclude, f"--exclude {exclude}")
    options = {"k1": k1, "k2": k2, "lambda_": lambda_, "queries_only": queries_only, "precision": precision}
    start, results = time.perf_counter(), []
    with _progress():
        if extraction is not None:
            own = {name: value for name, value in options.items() if name != "queries_only" or value}
            results = [extraction.score(), extraction.score(own)]
        if extraction is None or out is not None:
            found = retrieval.rerank(one.features, other.features, metric=metric, topk=topk, **options)
    seconds = time.perf_counter() - start
    size = f"{len(other.features)} rows for {len(one.features)} queries"
    _console.print(f"re-ranked {size} in {seconds:.1f} s", highlight=False)
    if out is not None and topk is None:
        output.save_array(out, found)
    elif out is not None:
        output.save_arrays(out, dist=found[0], index=found[1])
    if labels is not None:
        how = {"exclude": exclude, "cmc": cmc}
        with _progress():
            before = retrieval.evaluate(one.features, other.features, *labels, metric=metric, **how)
            after = retrieval.evaluate_distance(found, *labels, **how)
        named = {"Before re-ranking": before, "After re-ranking": after}
        results = [output.single(name, m, len(other.features), how | {"metric": metric}) for name, m in named.items()]
    for result in results:
        output.print_result(_console, result)
    if json_file is not None:
        scores = dict(zip(("before", "after"), [result.to_dict() for result in results], strict=False))
        output.write_json(json_file, {"options": options | {"metric": metric}, "seconds": seconds, **scores})
    if html is not None:
        facts = {"query": str(one.path), "gallery": str(other.path), "time": f"{seconds:.1f} s"}
        facts |= {name.rstrip("_"): str(value) for name, value in options.items()}
        output.write_evaluation(html, results, facts, title="Re-ranking", between=" → ")


def _is_run(source: Path, gallery: Path | None, data: Path | None, checkpoint: str | None) -> bool:
    if (gallery is None) == (data is None):
        wanted = "either --data ROOT for a run, or the features of a gallery as second file"
        raise ValueError(f"{source}: expected {wanted}, got {'neither' if data is None else 'both'}")
    if checkpoint is not None and data is None:
        raise ValueError(f"checkpoint: expected none with files of features, got {checkpoint!r}")
    return data is not None


def _sides(source: Path, gallery: Path | None, data: Path | None, checkpoint: str | None):
    """(query, gallery, extraction): of files, without the last, or of a run's test images."""
    from vifast.retrieval.feature_files import FeatureFile, load_pair

    if not _is_run(source, gallery, data, checkpoint):
        return *load_pair(source, gallery), None
    import torch

    from vifast.train.lifelong import extract_any

    with _progress():
        found = extract_any(source, data, which=checkpoint or "last")
    sides = []
    for name in ("query", "gallery"):
        samples = getattr(found.dataset, name)
        labels = {"ids": torch.from_numpy(samples.labels), "cams": torch.from_numpy(samples.cams)}
        sides.append(FeatureFile(Path(f"{data} ({name} images)"), getattr(found, name), labels))
    return *sides, found


def _by_protocol(
    source, gallery, protocol, variant, direction, mode, shots, permutations, level, plain, options
) -> list[ProtocolResult]:
    """One result, or one for each direction. ``plain`` are the arguments of ``retrieval.evaluate``, ``options`` those
    of every protocol."""
    from vifast import _checks, retrieval, retrieval_output
    from vifast.retrieval import protocols
    from vifast.retrieval.feature_files import load_pair

    _checks.one_of("protocol", protocol, PROTOCOLS)
    if protocol in ("plain", "sysu"):
        for name, value in (("direction", direction), ("variant", variant)):
            if value is not None:
                raise ValueError(f"{name}: expected none with --protocol {protocol}, got {value!r}")
        one, other = load_pair(source, gallery)
        if protocol == "plain":
            if options["rerank"] is not None:
                raise ValueError("rerank: expected another --protocol than plain; `vifast rerank` scores one gallery")
            labels = _labels(one, other, plain["exclude"], f"--exclude {plain['exclude']}")
            found = retrieval.evaluate(one.features, other.features, *labels, topk=options["topk"], **plain)
            return [retrieval_output.single("Whole gallery", found, len(other.features), plain)]
        labels = _labels(one, other, "sysu", "--protocol sysu")
        draw = {}
        if permutations is not None:
            draw = {"draw": "published", "permutations": _permutations(permutations)}
            draw["image_numbers"] = other.labels.get("images")
        options |= {"mode": mode, "shots": shots, "metric": plain["metric"]}
        return [protocols.sysu(one.features, other.features, *labels, **options, **draw)]
    options |= {} if variant is None else {"protocol": variant}
    ways = [direction or FIRST_WAY[protocol]]
    if direction == "both":
        ways = ["v2i", "i2v"]
    visible, infrared = (source, gallery) if ways[0] == "v2i" else (gallery, source)
    if protocol == "regdb" and SPLIT in str(visible):
        splits = [[str(path).replace(SPLIT, str(n)) for path in (visible, infrared)] for n in range(1, NUM_SPLITS + 1)]
        pairs = [load_pair(*split) for split in splits]
        sides = [[pair[side].features for pair in pairs] for side in (0, 1)]
        sides += [[pair[side].need("ids", "RegDB") for pair in pairs] for side in (0, 1)]
    else:
        pair = load_pair(visible, infrared)
        sides = [side.features for side in pair] + [side.need("ids", f"--protocol {protocol}") for side in pair]
        if protocol == "llcm" and variant != "idkl":
            sides += [side.need("cams", "LLCM's benchmark") for side in pair]
        if protocol == "vcm":
            cams = [side.labels.get("cams") for side in pair]
            sides += [side.need("cams", f"--variant {variant}") for side in pair] if variant == "vi-lreid" else cams
            visible, infrared = (side.need("tracklets", "--protocol vcm") for side in pair)
            options |= {"visible_tracklets": visible, "infrared_tracklets": infrared, "level": level}
    return [getattr(protocols, protocol)(*sides, direction=way, **options) for way in ways]


def _permutations(path: Path):
    from vifast.data.matfile import read_mat

    cell = read_mat(path).get("rand_perm_cam")
    if cell is None:
        raise ValueError(f"{path}: expected a cell named rand_perm_cam")
    return cell


def _labels(one: FeatureFile, other: FeatureFile, exclude: str, reason: str) -> list:
    """(query ids, gallery ids, query cameras, gallery cameras), cameras None where nothing is left out."""
    labels = [side.need("ids", "a score") for side in (one, other)]
    if exclude == "none":
        return [*labels, None, None]
    return labels + [side.need("cams", reason) for side in (one, other)]


def _left_out(one: FeatureFile, other: FeatureFile, exclude: str):
    from vifast.retrieval.exclude import blocks_of

    if exclude == "none":
        return None
    cams = [side.need("cams", f"--exclude {exclude}") for side in (one, other)]
    ids = [side.need("ids", f"--exclude {exclude}") if exclude == "same_id_camera" else None for side in (one, other)]
    return blocks_of(exclude, *ids, *cams)


def _moved(block, first: int):
    """The same blocks for queries that are counted from ``first``."""
    return lambda q0, q1, g0, g1: block(first + q0, first + q1, g0, g1)


@contextmanager
def _progress() -> Iterator[None]:
    """A bar for every loop of the library that is under way, the outermost first."""
    with _bar() as bar:

        def wrap(steps, name: str):
            task = bar.add_task(name, total=len(steps))
            try:
                for step in steps:
                    yield step
                    bar.advance(task)
            finally:
                bar.remove_task(task)

        with vifast.use_progress(wrap):
            yield


def _bar() -> Progress:
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=_console, transient=True, disable=not _console.is_interactive)
