"""Writes recorded measurements where they are told: ``python benchmarks/table.py [--check] [FILE ...]``.

- A page asks for a table with a pair of comments, and what stands between them is replaced:

      <!-- measured amd-epyc-x2: triplet_loss pairwise_distance -->
      <!-- /measured -->

  or, of a training step, for the time of its parts, or, of a study of ``ablation.py``, for its scores:

      <!-- parts amd-epyc-x2: idkl_step -->
      <!-- /parts -->
      <!-- ablation idkl-synthetic -->
      <!-- /ablation -->

- The last two cells of the README's ops and the "Measured" of the kernels' docstrings come from ``claims.py``.

Without files, all of them. ``--check`` changes nothing and fails where one differs from the record. So no number is
copied by hand.
"""

import argparse
import functools
import json
import re
import sys
import textwrap
from pathlib import Path

import ablation
import claims

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- measured (\S+): ([\w ]+) -->\n).*?(<!-- /measured -->)", re.DOTALL)
PARTS = re.compile(r"(<!-- parts (\S+): (\w+) -->\n).*?(<!-- /parts -->)", re.DOTALL)
ABLATION = re.compile(r"(<!-- ablation (\S+) -->\n).*?(<!-- /ablation -->)", re.DOTALL)
NUMBER = re.compile(r"{(?:([a-z_]+) )?([\dx]+) (?:(both|forward|backward)\.)?(\w+)}")
OWN = ("floor", "vifast", "definition")


@functools.cache
def record(device):
    """{(op, size): {pass: {provider: row}}}"""
    cases = {}
    for line in (ROOT / f"benchmarks/results/{device}.jsonl").read_text().splitlines():
        row = json.loads(line)
        passes = cases.setdefault((row["op"], tuple(row["size"])), {})
        passes.setdefault(row["pass"], {})[row["provider"]] = row
    return cases


def whole(passes):
    """Forward and backward together, where there are both."""
    return passes.get("both") or passes["forward"]


def table(device, ops):
    """Markdown: time and ratio to the floor, of both passes and of each, memory, and how many times as long every rival
    takes, by op and size."""
    cases = {op: sorted((size, passes) for (name, size), passes in record(device).items() if name == op) for op in ops}
    missing = [op for op in ops if not cases[op]]
    if missing:
        raise SystemExit(f"{device}: no record of {', '.join(missing)}")
    every = [passes for op in ops for _, passes in cases[op]]
    rivals = list(dict.fromkeys(name for passes in every for name in whole(passes) if name not in OWN))
    used = [row for passes in every for case in passes.values() for row in case.values()]
    parted = any("backward" in passes for passes in every)
    head = [
        "",
        "size",
        "ms",
        "forward + backward",
        "/ floor",
        "of each",
        "MiB",
        *(f"{name} / vifast" for name in rivals),
    ]
    lines = []
    for op in ops:
        for size, passes in cases[op]:
            case = whole(passes)
            ours = case["vifast"]
            both = [passes[part]["vifast"] for part in ("forward", "backward")] if "backward" in passes else []
            lines.append(
                [
                    f"`{op}`" if size == cases[op][0][0] else "",
                    " x ".join(map(str, size)),
                    number(ours["ms_p50"]),
                    " + ".join(number(row["ms_p50"]) for row in both),
                    number(ours["to_floor"]),
                    ", ".join(number(row["to_floor"]) for row in both),
                    number(ours["peak_mib"]),
                    *(number(case[rival]["to_vifast"]) if rival in case else "" for rival in rivals),
                ]
            )
    rows = [row if parted else row[:3] + row[4:5] + row[6:] for row in (head, *lines)]
    source = told_source(used)
    head, *lines = (f"| {' | '.join(row)} |" for row in rows)
    return (
        "\n".join([source, "", head.replace("|  |", "| |"), f"|---|---|{'--:|' * (len(rows[0]) - 2)}", *lines]) + "\n"
    )


def told_source(rows):
    return (
        f"{rows[0]['device']}, {rows[0]['threads']} threads, torch {rows[0]['torch']}, commit "
        f"{', '.join(sorted({row['commit'] for row in rows}))}; medians of interleaved runs."
    )


def parts_table(device, op):
    """Markdown: where the time of a training step goes, whose first part is the backbone's, and how many times as long
    the definitions take."""
    [(size, passes)] = [(size, passes) for (name, size), passes in record(device).items() if name == op]
    whole, *parts = passes
    step = passes[whole]["vifast"]["ms_p50"]
    backbone = parts[0].partition(",")[0]
    outside = {"vifast": 0.0, "definition": 0.0}
    lines = []
    for part in parts:
        times = {provider: passes[part][provider]["ms_p50"] for provider in outside if provider in passes[part]}
        lines.append((part, times))
        if "definition" in times:  # the backbone and the optimiser have none of ours
            outside = {provider: total + times[provider] for provider, total in outside.items()}
    both = {provider: row["ms_p50"] for provider, row in passes[whole].items()}
    lines += [
        (f"**between {backbone} and optimizer**", outside),
        ("**step**", both),
        (f"step of the {backbone} alone", {"vifast": both["floor"]}),
    ]
    rows = [
        (
            name,
            number(times["vifast"]),
            number(100 * times["vifast"] / step),
            number(times["definition"] / times["vifast"]) if "definition" in times else "",
        )
        for name, times in lines
    ]
    used = [row for case in passes.values() for row in case.values()]
    return (
        f"{told_source(used)} Size {' x '.join(map(str, size))}.\n\n"
        "| part | ms | % of the step | definition / vifast |\n|---|--:|--:|--:|\n"
        + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    )


def number(value):
    """Two or three digits, or all before the point."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def told(op, text):
    """A sentence of claims.py with its numbers, which are of ``op`` where they name none."""

    def value(match):
        other, size, part, what = match.groups()
        passes = record(claims.DEVICE)[other or op, tuple(map(int, size.split("x")))]
        case = passes[part] if part else whole(passes)
        if what in ("floor", "ms"):
            return number(case["vifast"][{"floor": "to_floor", "ms": "ms_p50"}[what]])
        return number(case[what]["to_vifast"])

    return NUMBER.sub(value, text)


def with_cells(text):
    """The README with the cells of its ops; an op that claims.py knows must have its row."""
    lines = text.split("\n")
    for begin, claim in claims.README.items():
        [at] = [number for number, line in enumerate(lines) if line.startswith(f"| {begin} |")]
        op = re.search(r"`(\w+)`", begin)[1]
        cells = [f" {told(op, cell)} " if cell else " " for cell in claim]
        lines[at] = "|".join([*lines[at].split("|")[:-3], *cells, ""])
    return "\n".join(lines)


def with_measured(text, claim):
    """A kernel's file with what its docstring says after "Measured"."""
    [found] = re.finditer(r"^(Measured +)\S.*\n(?: +\S.*\n)*", text, re.MULTILINE)
    label = found[1]
    filled = textwrap.fill(told(*claim), 120, initial_indent=label, subsequent_indent=" " * len(label))
    return f"{text[: found.start()]}{filled}\n{text[found.end() :]}"


def filled(file, text):
    if file == ROOT / "README.md":
        text = with_cells(text)
    if file.parent == ROOT / "kernels":
        return with_measured(text, claims.KERNELS[file.stem])
    text = BLOCK.sub(lambda block: block[1] + table(block[2], block[3].split()) + block[4], text)
    text = PARTS.sub(lambda block: block[1] + parts_table(block[2], block[3]) + block[4], text)
    return ABLATION.sub(lambda block: block[1] + ablation.table(block[2]) + block[3], text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="fail where a file differs from the record")
    options = parser.parse_args()
    every = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", *(ROOT / f"kernels/{name}.py" for name in claims.KERNELS)]
    stale = []
    for file in [file.resolve() for file in options.files] or every:
        before = file.read_text()
        after = filled(file, before)
        if after == before:
            continue
        stale.append(str(file.relative_to(ROOT)))
        if not options.check:
            file.write_text(after)
    if options.check and stale:
        sys.exit(f"differ from the record, run benchmarks/table.py: {', '.join(stale)}")


if __name__ == "__main__":
    main()
