import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast.nn import InstanceNormPurifier, Purified

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_purifier.npz"
WEIGHTS = {
    "norm.weight": "in_weight",
    "norm.bias": "in_bias",
    "gate_normed.0.weight": "mI_w1",
    "gate_normed.2.weight": "mI_w2",
    "gate_raw.0.weight": "mF_w1",
    "gate_raw.2.weight": "mF_w2",
}
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def published(case):
    """A purifier with the golden weights in float64, and the golden arrays."""
    with np.load(GOLDEN) as golden:
        arrays = {k[3:]: torch.from_numpy(golden[k]) for k in golden.files if k.startswith(f"{case}__")}
    hidden, channels = arrays["mI_w1"].shape
    module = InstanceNormPurifier(channels, reduction=channels // hidden).double()
    state = module.state_dict()
    for name, key in WEIGHTS.items():
        state[name] = arrays[key].double().reshape(state[name].shape)
    module.load_state_dict(state)
    return module, arrays


@pytest.mark.parametrize("case", "ab")
def test_golden_values_gradients_and_running_statistics(case):
    module, golden = published(case)
    x = golden["x"].double().requires_grad_()
    pooled, maps = module(x, return_maps=True)
    assert_close(pooled.fused, golden["sp_pl"], **EXACT)
    for name, key in (("normed", "xin"), ("normed_masked", "xin_p"), ("masked", "xf_p")):
        assert_close(getattr(maps, name), golden[key], **EXACT)
    assert_close(module.norm.running_mean, golden["run_mean"], **EXACT)
    assert_close(module.norm.running_var, golden["run_var"], **EXACT)
    outputs = pooled.fused, maps.normed, maps.normed_masked, maps.masked
    cotangents = [golden[f"ct_{key}"].double() for key in ("sp_pl", "xin", "xin_p", "xf_p")]
    torch.autograd.backward(outputs, cotangents)
    assert_close(x.grad, golden["vjp_x"], **EXACT)
    for name, key in WEIGHTS.items():
        grad = module.get_parameter(name).grad
        assert_close(grad.reshape(golden[f"vjp_{key}"].shape), golden[f"vjp_{key}"], **EXACT)
    module.eval()
    assert_close(module(x).fused, golden["eval_sp_pl"], **EXACT)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_vectors_are_those_of_the_maps(layout, training):
    module = InstanceNormPurifier(32).train(training)
    x = (torch.randn(4, 32, 6, 3) + 0.5).relu().contiguous(memory_format=layout)
    pooled, maps = module(x, return_maps=True)
    assert isinstance(pooled, Purified)
    for vector, of in zip(pooled, maps, strict=True):
        assert vector.dtype == torch.float32
        assert_close(vector, of.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3), rtol=1e-5, atol=1e-6)
    assert maps.raw is x


def test_half_maps_pool_to_float32():
    module, x = InstanceNormPurifier(32), torch.rand(2, 32, 6, 3)
    half = InstanceNormPurifier(32).bfloat16()
    half.load_state_dict(module.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(x)
    for pooled in (half(x.bfloat16()), mixed):
        assert all(vector.dtype == torch.float32 for vector in pooled)
        for vector, full in zip(pooled, module(x), strict=True):
            assert_close(vector, full, rtol=0.05, atol=0.05)


def kept_maps(module, x):
    """Tensors at least as large as the map that the forward keeps for the backward."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        module(x)
    return [t for t in kept.values() if t.numel() >= x.numel()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_map_and_two_gates_are_kept(layout):
    x = torch.rand(3, 64, 6, 3).contiguous(memory_format=layout).requires_grad_()
    assert len(kept_maps(InstanceNormPurifier(64), x)) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_statistics_are_those_of_instance_norm(dtype):
    module = InstanceNormPurifier(16).to(dtype)
    theirs = torch.nn.InstanceNorm2d(16, affine=True, track_running_stats=True).to(dtype)
    for seed in range(3):
        x = torch.randn(4, 16, 5, 3, generator=torch.Generator().manual_seed(seed)).to(dtype) + 2
        module(x)
        theirs(x)
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    assert_close(module.norm.running_mean, theirs.running_mean, **tolerance)
    assert_close(module.norm.running_var, theirs.running_var, **tolerance)
    module.eval()(x)
    with torch.no_grad():
        assert_close(module(x, return_maps=True)[1].normed, theirs.eval()(x), **tolerance)


def test_large_means_cost_no_digits_with_running_statistics():
    module = InstanceNormPurifier(64).eval()
    x = torch.randn(2, 64, 6, 3, generator=torch.Generator().manual_seed(0)) + 30
    with torch.no_grad():
        module.norm.running_mean.fill_(30.0)
        wanted = copy.deepcopy(module).double()(x.double())
        for ours, exact in zip(module(x), wanted, strict=True):
            assert_close(ours, exact.float(), rtol=1e-5, atol=1e-5)


def test_no_images_leave_the_statistics():
    module = InstanceNormPurifier(16)
    pooled, maps = module(torch.zeros(0, 16, 4, 2), return_maps=True)
    assert [v.shape for v in pooled] == [(0, 16)] * 5
    assert [m.shape for m in maps] == [(0, 16, 4, 2)] * 5
    assert module.norm.num_batches_tracked == 0


@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(training):
    module, x = InstanceNormPurifier(16).train(training), torch.rand(3, 16, 4, 2)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for ours, plain in zip(compiled(x), module(x), strict=True):
        assert_close(ours, plain)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((0,), ValueError, "channels: expected an integer >= 1, got 0"),
        ((32.0,), TypeError, "channels: expected an integer, got float"),
        ((32, True), TypeError, "reduction: expected an integer, got bool"),
        ((32, 5), ValueError, "reduction: expected a divisor of 32 channels, got 5"),
    ],
)
def test_a_wrong_option_is_named(args, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        InstanceNormPurifier(*args)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 4), r"x: expected a map \[N, C, H, W\], got shape \[2, 16, 4\]"),
        ((2, 8, 4, 2), r"x: expected 16 channels, got shape \[2, 8, 4, 2\]"),
        ((2, 16, 1, 1), r"x: expected more than one position in training mode, got shape \[2, 16, 1, 1\]"),
    ],
)
def test_a_wrong_map_is_named(shape, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        InstanceNormPurifier(16)(torch.zeros(shape))
    InstanceNormPurifier(16).eval()(torch.zeros(2, 16, 1, 1))
    assert "16, reduction=4" in repr(InstanceNormPurifier(16, reduction=4))
