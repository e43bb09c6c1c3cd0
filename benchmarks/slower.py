"""What takes longer than it did: ``python benchmarks/slower.py BEFORE AFTER [--share 0.05]``.

Both are files that ``run.py`` wrote. Compared are the medians of vifast, of every op, size and pass that both have from
the same device and number of threads. Prints those that take more than ``share`` longer, the worst first, and exits
with 1 if there are any, with 2 if the files have nothing in common.
"""

import argparse
import json
import sys
from pathlib import Path


def medians(file):
    """{(device, threads, op, size, pass): milliseconds} of vifast."""
    found = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        if row["provider"] == "vifast":
            found[row["device"], row["threads"], row["op"], tuple(row["size"]), row["pass"]] = row["ms_p50"]
    return found


def slower(before, after, share):
    """[(times as long, key, milliseconds before, after)], the worst first."""
    both = before.keys() & after.keys()
    grown = [(after[key] / before[key], key, before[key], after[key]) for key in both]
    return sorted((entry for entry in grown if entry[0] > 1 + share), reverse=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--share", type=float, default=0.05, help="that is not yet slower")
    args = parser.parse_args()
    before, after = medians(args.before), medians(args.after)
    common = len(before.keys() & after.keys())
    if common == 0:
        print(f"{args.before} and {args.after} have no measurement in common", file=sys.stderr)
        sys.exit(2)
    found = slower(before, after, args.share)
    for ratio, (_, _, op, size, part), old, new in found:
        print(f"{op:22} {'x'.join(map(str, size)):>20} {part:8} {old:10.3f} ms -> {new:10.3f} ms  {ratio:5.2f} x")
    print(f"{len(found)} of {common} take more than {args.share:.0%} longer")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
