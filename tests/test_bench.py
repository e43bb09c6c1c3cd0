"""``vifast bench``: what is timed is right, and the command says what it timed."""

import json

import pytest
import torch

from vifast.bench import CASES
from vifast.bench.compare import choose, compare
from vifast.kernels._registry import Op

SMALL = {"idkl_objective": (20, 32, 8), "augment": (4, 32, 16), "blur_jitter": (4, 32, 16)}


def small(case):
    return SMALL.get(case.op) or tuple(min(number, 16) for number in case.sizes[0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_definition_and_plain_eager_code_give_our_values_and_gradients(case):
    work = case.build(*small(case))
    passes = work.passes({"definition": work.definition(), "eager": work.eager()})
    assert len(work.floors) == len(passes)
    for providers in passes.values():
        providers["floor"]()
    if case.op == "idkl_objective":  # its dropout draws anew
        return
    # The definition's distance of a row from itself is the root of a rounding error.
    atol = 5e-3 if case.op == "pairwise_distance" else 1e-4
    for name in ("definition", "eager"):
        for providers in passes.values():
            values = []
            for provider in ("vifast", name):
                getattr(providers[provider], "prepare", lambda: None)()
                values.append(providers[provider]())
            torch.testing.assert_close(*values, rtol=1e-3, atol=atol)


def test_ops_are_as_they_were_after_the_eager_code_ran():
    call, work = Op.__call__, CASES[0].build(8, 16)
    work.eager()()
    assert Op.__call__ is call


def test_compare_times_every_provider_by_pass():
    (case,) = (case for case in CASES if case.op == "triplet_loss")
    timings = list(compare(case, (16, 32), device="cpu", parts=True, seconds=0))
    assert [timing.part for timing in timings] == ["both", "forward", "backward"]
    for timing in timings:
        assert list(timing.milliseconds) == ["floor", "vifast", "eager"]
        assert timing.ratio("vifast") == 1
        assert all(value > 0 for value in timing.milliseconds.values())


def test_without_a_name_all_ops_are_timed_at_a_quick_size():
    cases, device = choose([], None, "cpu")
    assert device == "cpu"
    assert [case for case, _ in cases] == list(CASES)
    assert all(size == (case.quick or case.sizes[0]) for case, size in cases)


def test_command_prints_one_table_and_writes_json(vifast, tmp_path):
    file = tmp_path / "bench.json"
    ops = ("symmetric_kl", "entropy_hinge")
    status, output, _ = vifast("bench", *ops, "--size", "8x16", "--dtype", "bfloat16", "--json", file)
    assert status == 0
    head, columns, *lines = output.splitlines()
    assert head.endswith("bfloat16")
    assert columns.split() == ["op", "size", "vifast", "ms", "eager", "ms", "ratio"]
    assert [line.split()[:2] for line in lines] == [[op, "8x16"] for op in ops]
    found = json.loads(file.read_text())
    assert found["torch"] == torch.__version__
    assert [timing["op"] for timing in found["timings"]] == list(ops)
    assert vifast("bench", "symmetric_kl", "--size", "8x16", "--parts")[1].count("symmetric_kl") == 3


@pytest.mark.slow
def test_command_compiles_on_request(vifast):
    output = vifast("bench", "symmetric_kl", "--size", "8x16", "--compile")[1]
    assert "compile ms" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tripletloss"], "op: expected some of triplet_loss, "),
        (["gem_pol"], "op: expected some of "),
        (["triplet_loss", "--size", "64"], "size: expected numbers as in 64x2048 for triplet_loss, got '64'"),
        (["triplet_loss", "--size", "0x64"], "size: expected numbers as in 64x2048 for triplet_loss, got '0x64'"),
        (["--size", "64x2048"], "size: expected numbers as in "),
        (["--dtype", "float64"], "dtype: expected one of float32, bfloat16, float16, got 'float64'"),
        (["--device", "tpu"], "device: expected one of cpu, cuda, got 'tpu'"),
        (["--json", "nowhere/x.json"], "json: expected a file in a folder that exists, got nowhere/x.json"),
    ],
)
def test_wrong_arguments_are_one_line(vifast, arguments, message):
    status, output, error = vifast("bench", *arguments)
    assert (status, output) == (2, "")
    assert error.startswith(f"vifast: {message}")
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there(vifast):
    assert vifast("bench", "--device", "cuda")[2] == "vifast: device: expected cpu, PyTorch finds no CUDA device\n"
