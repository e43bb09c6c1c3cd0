"""What the tables are made of: the record, and the sentences with its numbers."""

import json
import sys

import pytest
import run
import slower
import table
import torch


def rows(op, size, **passes):
    """{pass: {provider: row}} of (ms, to_floor) of ours by pass, where a rival takes twice as long."""
    usual = {"device": "Card", "threads": 2, "torch": "2", "commit": "abc", "op": op, "size": size, "peak_mib": 4.0}
    return {
        part: {
            "vifast": usual | {"ms_p50": ms, "to_floor": floor, "to_vifast": 1.0},
            "eager": usual | {"ms_p50": 2 * ms, "to_floor": 2 * floor, "to_vifast": 2.0},
        }
        for part, (ms, floor) in passes.items()
    }


def test_both_passes_stand_beside_the_whole(monkeypatch):
    record = {
        ("loss", (8, 2)): rows("loss", (8, 2), both=(3.0, 1.5), forward=(1.0, 0.5), backward=(2.04, 12.3)),
        ("find", (4,)): rows("find", (4,), forward=(100.4, 0.25)),
    }
    monkeypatch.setattr(table, "record", lambda device: record)
    assert table.table("card", ["loss", "find"]).splitlines()[2:] == [
        "| | size | ms | forward + backward | / floor | of each | MiB | eager / vifast |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        "| `loss` | 8 x 2 | 3.0 | 1.0 + 2.0 | 1.5 | 0.50, 12 | 4.0 | 2.0 |",
        "| `find` | 4 | 100 |  | 0.25 |  | 4.0 | 2.0 |",
    ]
    assert table.table("card", ["find"]).splitlines()[2:] == [
        "| | size | ms | / floor | MiB | eager / vifast |",
        "|---|---|--:|--:|--:|--:|",
        "| `find` | 4 | 100 | 0.25 | 4.0 | 2.0 |",
    ]
    with pytest.raises(SystemExit, match="card: no record of lost"):
        table.table("card", ["loss", "lost"])
    sentence = "{8x2 floor} of it, {8x2 backward.floor} backward, {8x2 eager} x faster; {find 4 ms} ms"
    assert table.told("loss", sentence) == "1.5 of it, 12 backward, 2.0 x faster; 100 ms"


def test_docstring_is_rewritten_where_it_says_measured(monkeypatch):
    monkeypatch.setattr(table, "record", lambda device: {("loss", (8,)): rows("loss", (8,), both=(1, 0.5))})
    before = 'r"""loss\n\nFloor    one.\nMeasured 9 of it, in\n         two lines.\nSource   a paper.\n"""\n'
    after = 'r"""loss\n\nFloor    one.\nMeasured 0.50 of it.\nSource   a paper.\n"""\n'
    assert table.with_measured(before, ("loss", "{8 floor} of it.")) == after


def test_parts_of_a_step_are_shares_of_it(monkeypatch):
    def times(**ms):
        usual = {"device": "Card", "threads": 2, "torch": "2", "commit": "abc"}
        return {provider: usual | {"ms_p50": value} for provider, value in ms.items()}

    passes = {
        "both": times(floor=90.0, vifast=100.0, definition=130.0),
        "trunk, forward": times(vifast=30.0),
        "losses, forward": times(vifast=2.0, definition=20.0),
        "losses, backward": times(vifast=3.0, definition=15.0),
        "trunk, backward": times(vifast=60.0),
        "optimizer": times(vifast=4.0),
    }
    monkeypatch.setattr(table, "record", lambda device: {("step", (8, 2)): passes})
    assert table.parts_table("card", "step").splitlines() == [
        "Card, 2 threads, torch 2, commit abc; medians of interleaved runs. Size 8 x 2.",
        "",
        "| part | ms | % of the step | definition / vifast |",
        "|---|--:|--:|--:|",
        "| trunk, forward | 30 | 30 |  |",
        "| losses, forward | 2.0 | 2.0 | 10 |",
        "| losses, backward | 3.0 | 3.0 | 5.0 |",
        "| trunk, backward | 60 | 60 |  |",
        "| optimizer | 4.0 | 4.0 |  |",
        "| **between trunk and optimizer** | 5.0 | 5.0 | 7.0 |",
        "| **step** | 100 | 100 | 1.3 |",
        "| step of the trunk alone | 90 | 90 |  |",
    ]


def test_what_became_slower_is_said(tmp_path, monkeypatch, capsys):
    def write(name, **medians):
        row = {"device": "Card", "threads": 2, "size": [64, 8], "pass": "both"}
        lines = [row | {"provider": "vifast", "op": op, "ms_p50": ms} for op, ms in medians.items()]
        lines.append(row | {"provider": "eager", "op": "fast", "ms_p50": 99.0 if name == "after" else 1.0})
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(tmp_path / name)

    before = write("before", fast=1.0, worse=2.0, gone=1.0, worst=1.0)
    after = write("after", fast=1.04, worse=2.2, new=9.0, worst=3.0)
    for files, status, words in (
        ((before, after), 1, ["worst", "worse", "2 of 3"]),
        ((after, before), 0, ["0 of 3"]),
        ((before, write("other", new=1.0)), 2, []),
    ):
        monkeypatch.setattr(sys, "argv", ["slower.py", *files])
        with pytest.raises(SystemExit) as stopped:
            slower.main()
        assert (stopped.value.code or 0) == status
        out, err = capsys.readouterr()
        assert [line[: len(word)] for line, word in zip(out.splitlines(), words, strict=True)] == words
        assert bool(err) == (status == 2)


def test_a_rival_that_a_card_cannot_run_is_left_out(monkeypatch, capsys):
    def too_large():
        raise torch.OutOfMemoryError("17 GiB\nof 139")

    providers = {"floor": int, "vifast": int, "eager": too_large}
    with pytest.raises(torch.OutOfMemoryError):
        run.able(providers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert list(run.able(providers)) == ["floor", "vifast"]
    assert capsys.readouterr().out == "eager: left out, OutOfMemoryError: 17 GiB\n"
    with pytest.raises(torch.OutOfMemoryError):
        run.able(providers | {"vifast": too_large})
