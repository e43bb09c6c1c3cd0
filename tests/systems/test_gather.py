import subprocess
import sys
from pathlib import Path

import gather_cases as cases
import pytest
import torch
from torch.testing import assert_close

from vifast.systems.gather import all_rows


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """What both ranks of a group report."""
    folder = tmp_path_factory.mktemp("group")
    program = [sys.executable, cases.__file__, str(folder)]
    here = Path(__file__).parent  # not the root, whose bare package would hide an installed one
    ranks = [
        subprocess.Popen([*program, str(rank), "2"], cwd=here, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    told = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), "\n".join(told)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", cases.OPTIONS)
def test_two_processes_take_the_step_of_one(group, name):
    loss, grads, _ = cases.step(name)
    for results in group:
        got, own, _ = results[name]
        assert_close(got, loss, rtol=1e-12, atol=0)
        assert own.keys() == grads.keys()
        for key, grad in grads.items():
            assert_close(own[key], grad, rtol=1e-9, atol=1e-12 + 1e-9 * grad.abs().max().item(), msg=key)


@pytest.mark.parametrize("name", ["mce", "own rows"])
def test_memories_move_by_the_rows_of_all_processes(group, name):
    """Also where every process compares its own rows alone."""
    _, _, memories = cases.step("mce")
    assert len(memories) == 2
    for results in group:
        for key, value in memories.items():
            assert_close(results[name][2][key], value, rtol=1e-12, atol=1e-12)


def test_one_process_keeps_its_rows():
    rows = torch.randn(3, 2)
    assert all_rows(rows)[0] is rows
