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

from vifast.train.build import build_system
from vifast.train.checkpoint import find_weights, load_weights
from vifast.train.config import load_config
from vifast.train.datasets import open_dataset
from vifast.train.evaluate import extract_run

CASES = Path(__file__).with_name("process_cases.py")


def train(folder, ranks, overrides):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    runs = [
        subprocess.Popen(
            [sys.executable, CASES, folder, str(rank), str(ranks), *overrides],
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
    (alone,) = train(tmp_path, 1, overrides)
    both = train(tmp_path, 2, overrides)
    assert [first + second for first, second in zip(both[0]["rows"], both[1]["rows"], strict=True)] == alone["rows"]
    assert both[0]["step"] == both[1]["step"] == alone["step"] == len(alone["rows"])
    trained = both[0]["weights"]
    for name, value in both[1]["weights"].items():
        if "running" not in name:  # statistics of a process's own images
            assert torch.equal(value, trained[name]), name
    features_of_one_process(tmp_path, both)


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
