"""Two processes train on the batches of one: each on whole identities of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
@pytest.mark.parametrize("sampler", ["pk", "idkl"])
def test_two_processes_share_the_batches_of_one(tmp_path, tiny_overrides, sampler):
    overrides = [*tiny_overrides, "epochs=2", "evaluate_every=0", f"dataset.sampler={sampler}", "dataset.short=repeat"]
    (alone,) = train(tmp_path, 1, overrides)
    both = train(tmp_path, 2, overrides)
    assert [first + second for first, second in zip(both[0]["rows"], both[1]["rows"], strict=True)] == alone["rows"]
    assert both[0]["step"] == both[1]["step"] == alone["step"] == len(alone["rows"])
    trained = both[0]["weights"]
    for name, value in both[1]["weights"].items():
        if "running" not in name:  # statistics of a process's own images
            assert torch.equal(value, trained[name]), name
