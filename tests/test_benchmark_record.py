"""What the tables are made of: the record, and the sentences with its numbers."""

import pytest
import table


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
