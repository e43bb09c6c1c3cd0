"""Writes recorded measurements into the pages: ``python benchmarks/table.py [--check] FILE.md ...``.

A page asks for a table with a pair of comments, and what stands between them is replaced:

    <!-- measured amd-epyc-x2: triplet_loss pairwise_distance -->
    <!-- /measured -->

``--check`` changes nothing and fails where a page differs from the record. So no number is copied by hand.
"""

import argparse
import json
import re
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(r"(<!-- measured (\S+): ([\w ]+) -->\n).*?(<!-- /measured -->)", re.DOTALL)
OWN = ("floor", "vifast", "definition")


def table(device, ops):
    """Markdown: time, ratio to the floor, and how many times as long every rival takes, by op and size."""
    rows = [json.loads(line) for line in (RESULTS / f"{device}.jsonl").read_text().splitlines()]
    cases = {}
    for row in rows:
        if row["op"] in ops:
            cases.setdefault((row["op"], tuple(row["size"])), {})[row["provider"]] = row
    missing = set(ops) - {op for op, _ in cases}
    if missing:
        raise SystemExit(f"{device}: no record of {', '.join(sorted(missing))}")
    rivals = list(dict.fromkeys(name for case in cases.values() for name in case if name not in OWN))
    used = [row for case in cases.values() for row in case.values()]
    lines = [
        f"{used[0]['device']}, {used[0]['threads']} threads, torch {used[0]['torch']}, commit "
        f"{', '.join(sorted({row['commit'] for row in used}))}; medians of interleaved runs.",
        "",
        f"| | size | ms | / floor | MiB | {' | '.join(f'{name} / vifast' for name in rivals)} |",
        f"|---|---|--:|--:|--:|{'--:|' * len(rivals)}",
    ]
    last = None
    for op in ops:
        for (name, size), case in sorted(cases.items()):
            if name != op:
                continue
            ours = case["vifast"]
            cells = [
                f"`{op}`" if op != last else "",
                " x ".join(map(str, size)),
                number(ours["ms_p50"]),
                number(ours["to_floor"]),
                number(ours["peak_mib"]),
                *(number(case[rival]["to_vifast"] if rival in case else None) for rival in rivals),
            ]
            lines.append(f"| {' | '.join(cells)} |")
            last = op
    return "\n".join(lines) + "\n"


def number(value):
    """Two or three digits, or all before the point."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def filled(text):
    return BLOCK.sub(lambda block: block[1] + table(block[2], block[3].split()) + block[4], text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="fail where a page differs from the record")
    options = parser.parse_args()
    stale = []
    for page in options.pages:
        before = page.read_text()
        after = filled(before)
        if after == before:
            continue
        stale.append(str(page))
        if not options.check:
            page.write_text(after)
    if options.check and stale:
        sys.exit(f"differ from the record, run benchmarks/table.py: {', '.join(stale)}")


if __name__ == "__main__":
    main()
