"""Every kernel compiles for three generations of cards without spilling, and products use the tensor cores."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import vifast.losses
import vifast.nn  # noqa: F401 - registers ops
from vifast.aot import ARCHITECTURES, LAUNCHES, compile_all
from vifast.kernels._registry import Op

SHARED = 227 * 1024  # bytes a block may ask for on sm_90 and sm_100; 163 KiB on sm_80, 99 KiB on sm_86 and sm_89


def test_every_launcher_is_compiled():
    launchers = {op.name: op.kernels["cuda"] for op in Op.registered if "cuda" in op.kernels}
    # The guide's example registers an op of its own when the documentation is tested in this process.
    ours = {name for name, launcher in launchers.items() if launcher.__module__.startswith("vifast.")}
    products = {op.name for op in Op.registered if op.kernels.get("cpu") is op.kernels.get("cuda")}  # the platform's
    assert set(LAUNCHES) == ours - products


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills_and_tensor_cores(architecture):
    compiled = compile_all(architecture)
    assert {row.kernel for row in compiled} >= {
        "_tile._mean_kernel",
        "batch_hard._mine_kernel",
        "batch_hard._finish_kernel",
        "batch_hard._backward_kernel",
        "batch_hard_small._forward_kernel",
        "gem_pool._gem_kernel",
        "gem_pool._backward_kernel",
        "purifier._stats_kernel",
        "purifier._forward_kernel",
        "purifier._backward_kernel",
        "class_centers._mean_kernel",
        "graph_alignment_streamed._fold_kernel",
        "graph_alignment_streamed._strip_kernel",
        "neighbor_loss._fold_kernel",
        "neighbor_loss._finish_kernel",
        "neighbor_loss._strip_kernel",
        "neighbor_loss_small._forward_kernel",
        "neighbor_loss_small._backward_kernel",
        "pairwise_distance._pairwise_kernel",
        "weighted_triplet._fold_kernel",
        "weighted_triplet._finish_kernel",
        "weighted_triplet._strip_kernel",
        "weighted_triplet_small._forward_kernel",
        "weighted_triplet_small._backward_kernel",
    }
    assert [row for row in compiled if row.stack > 0] == []
    assert [row for row in compiled if row.shared > SHARED] == []
    assert [row for row in compiled if row.product and not row.tensor_core] == []
    assert [row for row in compiled if row.kernel.endswith(("_mine_kernel", "_fold_kernel")) and not row.product] == []
