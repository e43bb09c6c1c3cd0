"""Timing of several callables in turn, and the peak memory of one."""

import ctypes
import time
from pathlib import Path

import torch


def interleaved(providers, rounds, seconds, warm=False, settle=False):
    """Times every provider once a round, so that a slow moment of the machine hits all alike; {name: sorted seconds}.

    Stops after ``rounds`` rounds, or when ``seconds`` are spent after at least one (three with ``settle``). What a
    provider must ``prepare`` is not timed. All run once before, unless they are ``warm``; with ``settle`` before every
    timed run: a virtual machine may give free memory back to its host while a slow rival runs, and who comes next would
    pay for fetching it.
    """
    for run in () if warm else providers.values():
        prepare(run)
        run()
    times = {name: [] for name in providers}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= (3 if settle else 1) and time.perf_counter() - start > seconds:
            break
        for name, run in providers.items():
            if settle:
                prepare(run)
                run()
            prepare(run)
            _synchronize()
            begin = time.perf_counter()
            run()
            _synchronize()
            times[name].append(time.perf_counter() - begin)
    return {name: sorted(values) for name, values in times.items()}


def prepare(run):
    getattr(run, "prepare", lambda: None)()


def quantile(values, share):
    return values[min(int(share * len(values)), len(values) - 1)]


def peak_mib(run):
    """Most memory above the start while ``run``, warm, runs: device memory on a GPU, resident pages otherwise."""
    prepare(run)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # else the run would reuse pages that its warm-up left behind
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of resident memory
    before = _status("VmRSS")
    run()
    return max(_status("VmHWM") - before, 0) / 2**10


def _status(field):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1])


def _synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
