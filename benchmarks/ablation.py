"""Trains the variants of a study and records their scores: ``python benchmarks/ablation.py STUDY [options]``.

A study is a file of ``benchmarks/studies``:

    preset: demo                        # or a YAML file
    datasets:                           # of vifast.data.synthetic.write; {people} in an override is the folder
      people: {layout: sysu, num_ids: 96, difficulty: 0.4}     # or a run on one: {preset: demo, overrides: [..]}
    common: ["data={people}", epochs=8] # overrides of the preset, as on the command line of vifast train
    variants:                           # and those of each variant; the first is what the others are compared with
      baseline: [options.graph=off]
      graphs: [options.graph=full]
    seeds: [0, 1, 2]                    # of training; the people are the same
    shown: [baseline, graphs]           # if not all of them are in the table
    teachers: [baseline]                # if any: {baseline} in an override is the folder of its run with the same seed

Every run is one line of ``results/ablation-STUDY.jsonl``, with what it was trained with, versions and commit. Runs that
have their line are not repeated, one that was cut short goes on from its last checkpoint, and lines that no longer say
what the study says are dropped. ``table.py`` puts the table in the place of what a page has between

    <!-- ablation STUDY -->
    <!-- /ablation -->
"""

import argparse
import concurrent.futures
import hashlib
import json
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
SCRATCH = HERE.parent / "runs/ablation"


@dataclass(frozen=True)
class Study:
    """What a file says; ``columns`` are the scores shown, and what they are called, the first the one compared."""

    preset: str
    datasets: Mapping[str, Mapping]
    variants: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    common: Sequence[str] = ()
    teachers: Sequence[str] = ()
    shown: Sequence[str] = ()
    columns: Mapping[str, str] = field(
        default_factory=lambda: {"mean_ap": "mAP", "rank1": "Rank-1", "mean_inp": "mINP"}
    )

    def runs(self):
        """What is trained: one dict for each variant and seed, which begins the run's line."""
        shared = {"preset": self.preset, "datasets": self.datasets}
        if self.teachers:
            shared["teachers"] = {name: [*self.common, *self.variants[name]] for name in self.teachers}
        return [
            {"variant": name, "seed": seed, "overrides": [*self.common, *overrides], **shared}
            for seed in self.seeds
            for name, overrides in self.variants.items()
        ]


def load(name):
    path = HERE / f"studies/{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise SystemExit(f"{name}: expected a study, one of {known}")
    try:
        return Study(**yaml.safe_load(path.read_text()))
    except TypeError as error:
        raise SystemExit(f"{path}: {error}") from error


def result_file(name):
    return HERE / f"results/ablation-{name}.jsonl"


def recorded(name, runs):
    """The lines of these runs, in their order; None where one is missing."""
    file = result_file(name)
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    found = {_key(line): line for line in lines}
    return [found.get(_key(run)) for run in runs]


def _key(run):
    names = ("variant", "seed", "overrides", "preset", "datasets", "teachers")
    told = {name: run[name] for name in names if name in run}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def write_dataset(spec, datasets):
    """The folder of one of the datasets, written unless it is there; of one with a ``preset`` that of a run, with
    ``overrides`` like a variant's."""
    folder = SCRATCH / f"data-{hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]}"
    if "preset" in spec:
        named = {name: other for name, other in datasets.items() if "preset" not in other}
        texts = filled(spec["overrides"], {name: write_dataset(other, datasets) for name, other in named.items()})
        if not list(folder.rglob("results.json")):
            trained(spec["preset"], texts, folder)
    elif not folder.exists():
        from vifast.data import synthetic

        synthetic.write(out=folder, **spec)
    return folder


def settings(run, folders):
    """Overrides of the preset, the datasets' names replaced by their folders."""
    return filled([*run["overrides"], f"seed={run['seed']}"], folders)


def filled(texts, folders):
    for name, folder in folders.items():
        texts = [text.replace(f"{{{name}}}", str(folder)) for text in texts]
    return texts


def train(run):
    """The line of a run; in a process of its own, for it sets torch's threads and seeds."""
    from run import provenance

    datasets = run["datasets"]
    folders = {name: write_dataset(spec, datasets) for name, spec in datasets.items()} | teachers_of(run)
    out = SCRATCH / f"run-{_key(run)}"
    start = time.perf_counter()
    scores = trained(run["preset"], settings(run, folders), out)
    line = {**run, "scores": scores, "seconds": time.perf_counter() - start, **provenance("cpu")}
    if run["variant"] not in run.get("teachers", {}):
        shutil.rmtree(out)
    return line


def trained(preset, overrides, out):
    """Scores of a run that is trained in ``out``: its own, or of a lifelong one those after its last stage."""
    from vifast.train.config import build_config, read_config
    from vifast.train.lifelong import Lifelong
    from vifast.train.lifelong_config import build_lifelong, is_lifelong
    from vifast.train.loop import Trainer

    given = read_config(preset, overrides)
    if not is_lifelong(given):
        return Trainer(build_config(given), out, resume=True, quiet=True).fit().scores.scalars()
    matrix = Lifelong(build_lifelong(given), out, resume=True, quiet=True).fit()
    last = len(matrix.order) - 1
    each = {name: scores["mean_ap"] for name, scores in matrix.rows[last].items()}
    means = {key: matrix.average(last, key) for key in ("mean_ap", "rank1", "mean_inp")}
    forgot = {"forgetting": matrix.forgetting(last), "backward_transfer": matrix.backward_transfer(last)}
    return {**means, **forgot, **each}


def teachers_of(run):
    """The folders of the teachers' runs with the seed of this one."""
    teachers = run.get("teachers", {}).items()
    runs = {name: {**run, "variant": name, "overrides": overrides} for name, overrides in teachers}
    return {name: SCRATCH / f"run-{_key(teacher)}" for name, teacher in runs.items()}


def table(name):
    """Markdown of a study's record: mean and standard deviation over the seeds, in percent, and the difference to the
    first variant with the same seed."""
    study = load(name)
    names = study.shown or list(study.variants)
    runs = [run for run in study.runs() if run["variant"] in names]
    lines = recorded(name, runs)
    missing = [f"{run['variant']} {run['seed']}" for run, line in zip(runs, lines, strict=True) if line is None]
    if missing:
        raise SystemExit(f"{name}: no record of {', '.join(missing)}")
    scores = {(line["variant"], line["seed"]): line["scores"] for line in lines}
    main, shown = next(iter(study.columns.items()))
    first = names[0]
    rows = []
    for variant in names:
        cells = [_spread([scores[variant, seed].get(score) for seed in study.seeds]) for score in study.columns]
        gains = [scores[variant, seed][main] - scores[first, seed][main] for seed in study.seeds]
        rows.append([variant, *cells, "" if variant == first else _spread(gains, sign="+")])
    commits = ", ".join(sorted({line["commit"] for line in lines}))
    head = f"| | {' | '.join(study.columns.values())} | {shown} − {first} |"
    return (
        f"{len(study.seeds)} seeds each, mean ± standard deviation in %; the difference is of runs of the same seed. "
        f"{lines[0]['device']}, torch {lines[0]['torch']}, commit {commits}.\n\n"
        f"{head}\n|---|{'--:|' * (len(study.columns) + 1)}\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    )


def _spread(values, sign=""):
    if None in values:  # what such a run does not have
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):{sign}.1f}{spread}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a file of benchmarks/studies without its .yaml")
    parser.add_argument("--only", nargs="*", metavar="VARIANT", help="train these alone")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side; give each few threads, threads=1")
    parser.add_argument("--list", action="store_true", help="print what is recorded and what is missing")
    args = parser.parse_args()
    study = load(args.study)
    runs = study.runs()
    if unknown := set(args.only or ()) - set(study.variants):
        raise SystemExit(f"--only: expected some of {', '.join(study.variants)}, got {', '.join(sorted(unknown))}")
    lines = recorded(args.study, runs)
    if args.list:
        for run, line in zip(runs, lines, strict=True):
            print(run["variant"], run["seed"], "missing" if line is None else line["scores"])
        return
    for spec in study.datasets.values():
        write_dataset(spec, study.datasets)
    chosen = args.only or study.variants
    left = [n for n, run in enumerate(runs) if lines[n] is None and run["variant"] in chosen]
    first = [n for n, run in enumerate(runs) if run["variant"] in study.teachers and _is_wanted(run, left, runs)]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        for stage in (first, [n for n in left if n not in first]):
            waiting = {pool.submit(train, runs[n]): n for n in stage}
            try:
                for done in concurrent.futures.as_completed(waiting):
                    n = waiting[done]
                    lines[n] = done.result()
                    write(args.study, lines)
                    print(runs[n]["variant"], runs[n]["seed"], lines[n]["scores"], flush=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _is_wanted(teacher, left, runs):
    """Whether it has no line, or no run that those which are left could learn from."""
    if any(runs[n] == teacher for n in left):
        return True
    there = teachers_of(teacher)[teacher["variant"]] / "results.json"
    return not there.is_file() and any(runs[n]["seed"] == teacher["seed"] for n in left)


def write(name, lines):
    file = result_file(name)
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))
    partial.replace(file)


if __name__ == "__main__":
    main()
