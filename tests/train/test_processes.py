"""Two processes train on the batches of one: each on whole identities of its own."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vifast.train import stages
from vifast.train.build import build_system
from vifast.train.checkpoint import find_weights, load_weights
from vifast.train.config import load_config
from vifast.train.datasets import open_dataset
from vifast.train.evaluate import extract_run
from vifast.train.log import read_metrics

CASES = Path(__file__).with_name("process_cases.py")


def train(folder, ranks, preset, overrides):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    runs = [
        subprocess.Popen(
            [sys.executable, CASES, folder, str(rank), str(ranks), preset, *overrides],
            env=os.environ | meet,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=240)
        assert run.returncode == 0, errors
    return [torch.load(folder / f"{ranks}-{rank}.pt") for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "system"), [("pk", "agw"), ("idkl", "agw"), ("pk", "mce")])
def test_two_processes_share_the_batches_of_one(tmp_path, tiny_overrides, sampler, system):
    overrides = [*tiny_overrides, "epochs=2", "evaluate_every=0", f"dataset.sampler={sampler}", "dataset.short=repeat"]
    overrides += [f"system={system}", "optimizer={name: adam}"]
    (alone,), both = (train(tmp_path, ranks, "agw-sysu", overrides) for ranks in (1, 2))
    (one,), (first,), (second,) = (rank["stages"] for rank in (alone, *both))
    assert [a + b for a, b in zip(first["rows"], second["rows"], strict=True)] == one["rows"]
    assert first["step"] == one["step"] == len(one["rows"])
    trained_together(tmp_path, both)


@pytest.mark.slow
def test_two_processes_train_a_teacher_and_its_student(tmp_path, tiny_overrides):
    """One after the other in one start of both, with the files and records of one process."""
    overrides = [*tiny_overrides, "epochs=2", "evaluate_every=1", "dataset.sampler=with_replacement"]
    overrides += ["teacher_config={base: mce-sysu, epochs: 1, dataset: {num_ids: 2, num_instances: 2}}"]
    both = train(tmp_path, 2, "dakd-sysu", overrides)
    stages.train(load_config("dakd-sysu", overrides), tmp_path / "run-1", quiet=True)
    assert written(tmp_path / "run-2") == written(tmp_path / "run-1")
    assert [stage["step"] for stage in both[0]["stages"]] == [2, 4]
    teacher, student = (stage["weights"] for stage in both[0]["stages"])
    assert "objective.memory.live" in teacher
    assert student["prototypes_v"].any()
    trained_together(tmp_path, both)


def written(run):
    """The files of a run and its teacher's, TensorBoard's by their folder, and what their records are of."""
    paths = (path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file())
    files = [path.parent if "tfevents" in path.name else path for path in paths]
    records = [record for folder in (run / "teacher", run) for record in read_metrics(folder)]
    return files, [(record["kind"], record["step"], [*record]) for record in records]


def trained_together(folder, both):
    """Both have the same weights at the end of every stage, and found the features of one process."""
    for first, second in zip(*(rank["stages"] for rank in both), strict=True):
        assert first["step"] == second["step"]
        for name, value in second["weights"].items():
            if "running" not in name:  # statistics of a process's own images
                assert torch.equal(value, first["weights"][name]), name
    features_of_one_process(folder, both)


def features_of_one_process(folder, both):
    """What two processes extracted together are the bits that one of them finds in the run's folder."""
    config = load_config(folder / "run-2" / "config.yaml")
    system = build_system(config, 6, trained=True)
    load_weights(find_weights(folder / "run-2"), system)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = extract_run(folder / "run-2", config.data)
        small = runpy.run_path(str(CASES))["small_batches"](system, open_dataset(config))
    finally:
        torch.set_num_threads(threads)
    for rank in both:
        assert torch.equal(rank["query"], found.query)
        assert torch.equal(rank["gallery"], found.gallery)
        assert all(map(torch.equal, rank["small"], small))
    results = json.loads((folder / "run-2" / "results.json").read_text())
    assert results == found.score().to_dict()
