"""What the Triton kernels move and take, as Markdown: ``TRITON_INTERPRET=1 python benchmarks/predict.py [OP ..]``.

No GPU. Bytes and products are counted, not derived: every load, store and dot that the launchers' own kernels execute
in the interpreter, each address once per instruction. Registers and shared memory come from compiling the same
launchers for an H200. The predicted time is the larger of bytes over bandwidth and products over rate, of the kernels
as written and of the floor; a cache in front of the memory puts the truth between the two. Measurements replace this
where a card is at hand (``make gpu``).
"""

import os
import subprocess
import sys
from collections import defaultdict
from unittest import mock

import numpy as np
import torch

from vifast import functional
from vifast.data import Augment
from vifast.kernels._registry import forced
from vifast.kernels.purifier import instance_stats, purifier

BANDWIDTH = 4.3e12  # bytes a second of an H200
RATE = {"fast": 790e12 / 2, "exact": 790e12 / 6}  # operations a second as tf32, and as three tf32 products
REGISTERS, WARPS, SHARED, BLOCKS = 65536, 64, 228 * 1024, 32  # of one multiprocessor


class Traffic:
    """Counts what interpreted kernels do, by kernel."""

    def __init__(self):
        self.bytes, self.operations, self.launches = defaultdict(int), defaultdict(int), defaultdict(int)
        self.kernel = None

    def __enter__(self):
        from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

        def counted(name, count):
            plain = getattr(InterpreterBuilder, name)

            def method(builder, *args, **kwargs):
                count(*args)
                return plain(builder, *args, **kwargs)

            return mock.patch.object(InterpreterBuilder, name, method)

        def load(pointers, mask, *_):
            touched = np.unique(pointers.data[mask.data]) if mask is not None else np.unique(pointers.data)
            self.bytes[self.kernel] += touched.size * (pointers.get_element_ty().primitive_bitwidth // 8)

        def store(pointers, value, mask, *_):
            load(pointers, mask)

        def dot(a, b, *_):
            self.operations[self.kernel] += 2 * a.data.shape[-2] * a.data.shape[-1] * b.data.shape[-1]

        run = GridExecutor.__call__

        def launch(executor, *args, **kwargs):
            self.kernel = f"{executor.fn.__module__.split('.')[-1]}.{executor.fn.__name__}"
            self.launches[self.kernel] += 1
            return run(executor, *args, **kwargs)

        patches = (
            counted("create_masked_load", load),
            counted("create_masked_store", store),
            counted("create_dot", dot),
        )
        self.patches = (*patches, mock.patch.object(GridExecutor, "__call__", launch))
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *_):
        for patch in self.patches:
            patch.stop()


def occupancy(row):
    """Share of a multiprocessor's warps that the kernel's registers and shared memory leave room for."""
    registers, warps, shared = (int(row[name]) for name in ("registers", "warps", "shared"))
    blocks = min(REGISTERS // (registers * 32 * warps), SHARED // (shared + 1024), WARPS // warps, BLOCKS)
    return blocks * warps / WARPS


def compiled():
    """The rows of ``python -m vifast.aot 90`` by kernel; the first launch of each."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "vifast.aot", "90"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    rows = {}
    for line in lines[1:]:
        row = dict(zip(lines[0].split("\t"), line.split("\t"), strict=True))
        rows.setdefault(row["kernel"], row)
    return rows


def _batch(loss, products):
    """A loss of [N, D] features: read forward, read and gradient written backward, N x N x D products."""

    def build(n, d):
        feat = torch.randn(n, d).requires_grad_()
        labels = torch.arange(n) // 8
        return lambda: loss(feat, labels).backward(), 3 * n * d * 4, products * 2 * n * n * d

    return build


def _rows(loss, products=0.0):
    """A loss of two sets of rows [N, D], likewise."""

    def build(n, d):
        a, b = (torch.randn(n, d).requires_grad_() for _ in range(2))
        return lambda: loss(a, b).backward(), 6 * n * d * 4, products * 2 * n * n * d

    return build


def _relation(n, d):
    student, teacher = torch.randn(n, d).requires_grad_(), torch.randn(n, d)
    return lambda: functional.relation_alignment(student, teacher).backward(), 4 * n * d * 4, 3 * 2 * n * n * d


def _distill(n, d):
    student, teacher = torch.randn(n, d).requires_grad_(), torch.randn(n, d)
    loss = lambda: functional.standardized_kl(student, teacher, (2.0, 3.0, 4.0, 5.0, 6.0))  # noqa: E731
    return lambda: loss().backward(), 3 * n * d * 4, 0


def _decoupled(n, k):
    student, teacher = torch.randn(n, k).requires_grad_(), torch.randn(n, k)
    return lambda: functional.decoupled_kl(student, teacher, torch.arange(n) % k).backward(), 3 * n * k * 4, 0


def _centers(n, k, d):
    """Eight rows a class; backward the rows and their centers are read again, and both gradients written."""
    feat, centers = torch.randn(n, d).requires_grad_(), torch.randn(k, d).requires_grad_()
    loss = lambda: functional.center_loss(feat, torch.arange(n) // 8, centers)  # noqa: E731
    return lambda: loss().backward(), (3 * n + 2 * (n // 8) + k) * d * 4, 0


def _identities(loss):
    """A loss of two sets of rows [N, D] and what is known of them."""

    def build(n, d):
        rows = [torch.randn(n, d).requires_grad_() for _ in range(2)]
        return lambda: loss(*rows, torch.arange(n) // 8).backward(), 6 * n * d * 4, 0

    return build


def _hinge(raw, purified, labels):
    return functional.center_hinge(raw, purified, labels, torch.arange(len(labels)) % 2, margin=1.0)


def _prototype(n, k, d):
    student, teacher, prototypes = torch.randn(n, d).requires_grad_(), torch.randn(n, d), torch.randn(k, d)
    loss = lambda: functional.prototype_alignment(student, teacher, prototypes)  # noqa: E731
    return lambda: loss().backward(), (4 * n + 2 * k) * d * 4, 3 * 2 * n * k * d


def _pool(n, c, h, w):
    x = torch.rand(n, c, h, w).requires_grad_()
    return lambda: functional.gem_pool(x).sum().backward(), 3 * x.numel() * 4, 0


def _purify(n, c, h, w):
    maps = [torch.randn(n, c, h, w).requires_grad_() for _ in range(3)]
    affine = torch.ones(c), torch.zeros(c)

    def run():
        mean, var = instance_stats(maps[0].detach())
        purifier(*maps, mean, (var + 1e-5).rsqrt(), *affine, True).sum().backward()

    return run, 9 * maps[0].numel() * 4, 0


def _augment(n, h, w):
    """DAKD's steps: bytes read, float32 written."""
    images = torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8)
    params = Augment.preset("dakd").draw(range(n), [i % 2 for i in range(n)], (h, w), seed=0, epoch=0)
    return lambda: functional.augment(images, params), n * h * w * (3 + 12), 0


def _blur_jitter(n, h, w):
    """CKDA's: of four images two as they are, one blurred, one jittered. Bytes alone are counted, see the page."""
    images, one = torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8), [1.0] * (n // 4)
    params = functional.BlurJitterParams.of(
        one * 3 + [0.8] * (n // 4), one * 3 + [1.2] * (n // 4), [0.0] * (n // 2) + [2.0] * (n // 4) + [0.0] * (n // 4)
    )
    return lambda: functional.blur_jitter(images, params), 2 * images.numel(), 0


# (op, build, the size that is counted, how many times larger the size that is predicted is, that size)
MAPS = (2, 64, 24, 9), 1920, "120 x 2048 x 24 x 9"
ENTRIES = [
    ("triplet_loss", _batch(functional.triplet_loss, 0.5), (128, 2048), 1, "128 x 2048"),
    ("weighted_triplet_loss", _batch(functional.weighted_triplet_loss, 2), (128, 2048), 1, "128 x 2048"),
    ("neighbor_loss", _batch(functional.neighbor_loss, 2), (128, 2048), 1, "128 x 2048"),
    ("graph_alignment", _rows(functional.graph_alignment, 4), (60, 2048), 1, "60 x 2048"),
    ("relation_alignment", _relation, (60, 2048), 1, "60 x 2048"),
    ("center_hinge", _identities(_hinge), (120, 2048), 1, "120 x 2048"),
    ("center_triplet_loss", _identities(functional.center_triplet_loss), (32, 768), 1, "32 x 768"),
    ("prototype_alignment", _prototype, (32, 713, 768), 1, "32 x 713 x 768"),
    ("symmetric_kl", _rows(functional.symmetric_kl), (60, 395), 1, "60 x 395"),
    ("entropy_hinge", _rows(functional.entropy_hinge), (120, 395), 1, "120 x 395"),
    ("standardized_kl", _distill, (64, 2048), 1, "64 x 2048"),
    ("decoupled_kl", _decoupled, (120, 395), 1, "120 x 395"),
    ("center_loss", _centers, (120, 395, 2048), 1, "120 x 395 x 2048"),
    ("gem_pool", _pool, *MAPS),
    ("purifier", _purify, *MAPS),
    ("augment", _augment, (16, 48, 128), 64 * 384 // (16 * 48), "64 x 384 x 128"),
    ("blur_jitter", _blur_jitter, (4, 16, 42), 64 * 256 * 128 / (4 * 16 * 42), "64 x 256 x 128"),
]


def main():
    kernels = compiled()
    print("| op | size | kernels: launches, registers, occupancy | moved | floor | ratio | as written | at the floor |")
    print("|---|---|---|--:|--:|--:|--:|--:|")
    chosen = [entry for entry in ENTRIES if entry[0] in sys.argv[1:]] or ENTRIES
    for name, build, counted, factor, size in chosen:
        run, floor, operations = build(*counted)
        with forced("cuda"), Traffic() as traffic:
            run()
        moved = sum(traffic.bytes.values()) * factor
        done = sum(traffic.operations.values()) * factor
        rows = [
            f"`{kernel}` {count}, {kernels[kernel]['registers']}, {occupancy(kernels[kernel]):.0%}"
            for kernel, count in traffic.launches.items()
        ]
        as_written = max(moved / BANDWIDTH, done / RATE["exact"])
        at_floor = max(floor * factor / BANDWIDTH, operations * factor / RATE["exact"])
        cells = (f"{moved / 1e6:.1f} MB", f"{floor * factor / 1e6:.1f} MB", f"{moved / (floor * factor):.1f}")
        times = (f"{as_written * 1e6:.1f} us", f"{at_floor * 1e6:.1f} us")
        print(f"| `{name}` | {size} | {'; '.join(rows)} | {' | '.join(cells + times)} |")


if __name__ == "__main__":
    main()
