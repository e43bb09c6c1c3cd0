"""Runs the benchmarks and records them: ``python benchmarks/run.py [--smoke] [--only OP[:SIZE] ...] [--out FILE]``.

Each line of the record is one pass (both, forward, backward) of one provider at one size: percentiles of its time, the
ratio to the floor and to vifast in the same process, peak memory, and the machine, versions and commit it came from.
Nothing is recorded for losses whose check against the float64 definition fails in this run.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from cases import CASES, smoke_size

from vifast import functional
from vifast.bench.machine import environment
from vifast.bench.measure import interleaved, peak_mib, prepare, quantile

RESULTS = Path(__file__).parent / "results"


def provenance(device):
    """The machine, the versions, the commit and the day."""
    root = Path(__file__).parent.parent
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    day = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    return environment(device) | {"commit": git.stdout.strip() or None, "date": day}


def check_losses(device):
    """A number of a wrong op is worth nothing: values and gradients against float64 first."""
    feat, labels = torch.randn(40, 96, device=device), torch.arange(40, device=device) // 4
    losses = (
        functional.triplet_loss,
        functional.weighted_triplet_loss,
        functional.neighbor_loss,
        lambda x, y: functional.graph_alignment(x, x.flip(1) + x),
        lambda x, y: functional.relation_alignment(x, x.flip(1) + x),
        lambda x, y: functional.prototype_alignment(x, x.flip(1) + x, x.flip(0)),
        lambda x, y: functional.center_triplet_loss(x, x.flip(0), y),
        lambda x, y: functional.center_cluster_loss(x, y, margin=20.0),
        lambda x, y: functional.center_hinge(x, x.flip(1), y, torch.arange(len(y), device=device) % 2),
    )
    for loss in losses:
        pair = []
        for dtype in (torch.float32, torch.float64):
            rows = feat.detach().to(dtype).requires_grad_()
            value = loss(rows, labels)
            value.backward()
            pair.append((value.detach().double(), rows.grad.double()))
        for ours, oracle in zip(*pair, strict=True):
            torch.testing.assert_close(ours, oracle, rtol=1e-4, atol=1e-6)


def able(providers):
    """Those that run on this card: a rival may want more memory than it has, or be what it cannot compile."""
    found = {}
    for name, run in providers.items():
        try:
            prepare(run)
            run()
        except RuntimeError as error:
            if name in ("floor", "vifast") or not torch.cuda.is_available():
                raise
            print(f"{name}: left out, {type(error).__name__}: {str(error).strip().splitlines()[0]}", flush=True)
        else:
            found[name] = run
    return found


def launches(run):
    """Kernels and copies that a warm call puts on the card; None if the profiler may not see them."""
    prepare(run)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in trace.events()) or None


def run_case(case, size, smoke, device):
    left_out = set()
    for number, (part, every) in enumerate(case.passes(*size, device=device).items()):
        providers = {name: run for name, run in every.items() if name not in left_out}
        if number == 0:
            providers = able(providers)
            left_out = set(every) - set(providers)
        rounds, seconds = (41, case.seconds) if number == 0 else (15, case.seconds / 3)
        rounds = 2 if smoke else rounds
        times = interleaved(providers, rounds, seconds, warm=True, settle=case.settle)
        # A rival that takes longer than that is not timed by part.
        left_out |= {name for name in set(times) - {"floor", "vifast"} if quantile(times[name], 0.5) > case.seconds / 3}
        medians = {name: quantile(values, 0.5) for name, values in times.items()}
        for name, values in times.items():
            median = medians[name]
            yield {
                "op": case.op,
                "size": list(size),
                "pass": part,
                "provider": name,
                "ms_p20": 1e3 * quantile(values, 0.2),
                "ms_p50": 1e3 * median,
                "ms_p80": 1e3 * quantile(values, 0.8),
                "rounds": len(values),
                "to_floor": median / medians["floor"] if "floor" in medians else None,  # a part may have none
                "to_vifast": median / medians["vifast"],
                "peak_mib": None if name == "floor" or smoke else peak_mib(providers[name]),
            } | ({"launches": launches(providers[name])} if device == "cuda" else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="shapes / 16, two rounds, no record")
    parser.add_argument("--only", nargs="*", metavar="OP[:SIZE]", help="these alone, as in triplet_loss:64x2048")
    parser.add_argument("--out", type=Path, help="record to this file instead of results/<device>.jsonl")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    check_losses(device)
    where = provenance(device)
    slug = re.sub(r"[^a-z0-9]+", "-", where["device"].lower()).strip("-")
    out = args.out or RESULTS / f"{slug}.jsonl"
    cases = [(case, size) for case in CASES for size in case.sizes_on(device)]
    chosen = [(c, size) for c, size in cases if not args.only or {c.op, f"{c.op}:{shown(size)}"} & set(args.only)]
    if not chosen:
        known = ", ".join(dict.fromkeys(case.op for case, _ in cases))
        sys.exit(f"--only: expected some of {known}, got {' '.join(args.only)}")
    for case, full_size in chosen:
        size = smoke_size(full_size) if args.smoke else full_size
        rows = [row | where for row in run_case(case, size, args.smoke, device)]
        for row in rows:
            memory = "" if row["peak_mib"] is None else f"{row['peak_mib']:9.1f} MiB"
            floor = "" if row["to_floor"] is None else f"{row['to_floor']:6.2f} x floor"
            print(
                f"{row['op']:22} {shown(size):>20} {row['pass']:8} {row['provider']:12} {row['ms_p50']:10.3f} ms"
                f" {floor:14} {row['to_vifast']:6.2f} x vifast",
                memory,
                flush=True,
            )
        if not args.smoke:
            record(rows, out)


def shown(size):
    return "x".join(map(str, size))


def record(rows, out):
    """Puts the rows in the place of earlier ones of the same op and size, all or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = [] if not out.exists() else [json.loads(line) for line in out.read_text().splitlines()]
    kept = [k for k in kept if (k["op"], k["size"]) != (rows[0]["op"], rows[0]["size"])]
    partial = out.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept + rows))
    partial.replace(out)


if __name__ == "__main__":
    main()
