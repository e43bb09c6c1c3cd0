from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.gem_pool import gem_pool, gem_pool_backward
from vifast.testing import MAP_LAYOUTS, assert_close_to_oracle, check_op, check_values, feature_map, with_map_layout

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_gem.npz"
FORMS = [(True, 1e-6), (False, 1e-12)]
both_forms = pytest.mark.parametrize(("clamp", "eps"), FORMS, ids=["clamp", "agw"])
every_layout = pytest.mark.parametrize("layout", MAP_LAYOUTS)


def value_and_grads(x, cotangent=None, **options):
    x = x.detach().requires_grad_()
    pooled = F.gem_pool(x, **options)
    if cotangent is None:
        cotangent = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p = options.get("p")
    grads = torch.autograd.grad(pooled, [x, p] if isinstance(p, torch.Tensor) else [x], cotangent.to(pooled))
    return pooled, *grads


def close_to_float64(x, length, **options):
    """Values, gradients, and that the gradient lies as the map does."""
    double = dict(options)
    if isinstance(options.get("p"), torch.Tensor):
        double["p"] = options["p"].detach().double().requires_grad_()
    ours = value_and_grads(x, **options)
    for actual, wanted in zip(ours, value_and_grads(x.double(), **double), strict=True):
        assert_close_to_oracle(actual, wanted, length=length)
    assert ours[1].dtype == x.dtype
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    assert not dense or ours[1].stride() == x.stride()


def test_three_positions_done_by_hand(backend):
    x = torch.tensor([[[[1.0, 2.0, -3.0]], [[0.0, 0.0, 0.0]]]], device=backend.device)
    pooled, grad = value_and_grads(x, torch.ones(1, 2))
    third = 3 ** (1 / 3)
    assert_close(pooled.cpu(), torch.tensor([[third, 1e-6]]), rtol=1e-6, atol=0)
    assert_close(grad[0, 0, 0].cpu(), torch.tensor([1.0, 4.0, 0.0]) / third**2 / 3, rtol=1e-6, atol=0)
    assert grad[0, 1].eq(0).all()


@pytest.mark.parametrize("case", "abc")
@pytest.mark.parametrize("form", ["", "agw_"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(case, form, dtype, backend):
    with np.load(GOLDEN) as golden:
        if f"{case}__{form}x" not in golden:
            return
        x, out, grad = (torch.from_numpy(golden[f"{case}__{form}{name}"]) for name in ("x", "out", "grad_x"))
        cotangent = torch.from_numpy(golden[f"{case}__ct"]).to(backend.device)
    options = {"clamp": False, "eps": 1e-12} if form else {}
    for ours, wanted in zip(
        value_and_grads(x.to(backend.device, dtype), cotangent, **options), (out, grad), strict=True
    ):
        if dtype == torch.float64:
            assert_close(ours.cpu(), wanted, rtol=1e-9, atol=1e-11)
        else:
            assert_close_to_oracle(ours, wanted, length=x[0, 0].numel())


@both_forms
@every_layout
@pytest.mark.parametrize("exponent", [3.0, 2.5, "learned"])
def test_values_on_every_back_end(backend, layout, clamp, eps, exponent):
    p = torch.tensor(2.7, device=backend.device, requires_grad=True) if exponent == "learned" else exponent
    x = feature_map(3, 5, 7, 3, device=backend.device, low=-0.5 if clamp else 0.0)
    close_to_float64(with_map_layout(x, layout), 21, p=p, clamp=clamp, eps=eps)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 4, 2), (2, 70, 1, 1), (2, 33, 24, 9), (1, 3, 40, 33)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_shapes(backend, shape, layout):
    close_to_float64(with_map_layout(feature_map(*shape, device=backend.device), layout), shape[2] * shape[3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("p", [3.0, 1.5])
def test_half_maps(backend, dtype, layout, p):
    close_to_float64(with_map_layout(feature_map(2, 19, 6, 5, dtype=dtype, device=backend.device), layout), 30, p=p)


@both_forms
def test_op(clamp, eps):
    def make_args(n):
        x = feature_map(n, 4, 3, 2, low=-0.5 if clamp else 0.0).requires_grad_()
        return x, torch.tensor(3.0, requires_grad=True), 0.0, eps, clamp

    check_op(gem_pool, make_args, length=6, outputs=1)
    check_values(gem_pool, (make_args(3)[0], None, 3.0, eps, clamp), length=6, outputs=1)


@both_forms
def test_gradcheck(clamp, eps):
    x = feature_map(2, 3, 3, 2, dtype=torch.float64, low=-0.5 if clamp else 0.02).requires_grad_()
    p = torch.tensor(2.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, p: F.gem_pool(x, p=p, clamp=clamp, eps=eps), (x, p))


def test_backward_op():
    x = feature_map(2, 3, 3, 2)
    g = gem_pool(x, None, 3.0, 1e-6, True)
    torch.library.opcheck(gem_pool_backward.overload, (torch.ones_like(g), x, g, None, 3.0, 1e-6, True))
    torch.library.opcheck(gem_pool_backward.overload, (torch.ones_like(g), x, g, torch.tensor(3.0), 0.0, 1e-6, True))


def test_no_images(backend):
    x = torch.zeros(0, 3, 4, 2, device=backend.device, requires_grad=True)
    pooled, grad = value_and_grads(x)
    assert pooled.shape == (0, 3)
    assert grad.shape == x.shape


def test_a_nan_and_an_overflow_stay_in_their_channel(backend):
    x = feature_map(2, 3, 4, 2, device=backend.device)
    clean = value_and_grads(x)
    x[1, 2, 0, 0], x[0, 0, 0, 0] = torch.nan, 1e20
    pooled, grad = value_and_grads(x)
    assert pooled[1, 2].isnan()
    assert pooled[0, 0].isinf()
    assert grad[0, 0].eq(0).all()
    rest = torch.ones(2, 3, dtype=torch.bool, device=x.device)
    rest[1, 2] = rest[0, 0] = False
    assert torch.equal(pooled[rest], clean[0][rest])
    assert torch.equal(grad[rest], clean[1][rest])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bits_do_not_depend_on_threads(with_threads, layout):
    x, p = feature_map(30, 70, 12, 6), torch.tensor(2.5, requires_grad=True)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        results.append(value_and_grads(with_map_layout(x, layout), p=p) + value_and_grads(with_map_layout(x, layout)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_instruction_set(isa, dtype):
    for p in (3.0, 2.5):
        close_to_float64(feature_map(2, 37, 9, 5, dtype=dtype), 45, p=p)


MAP = torch.rand(2, 3, 4, 2)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((MAP.tolist(),), {}, TypeError, r"x: expected a map \[N, C, H, W\], got list"),
        ((MAP.long(),), {}, TypeError, "x: expected a floating-point map, got torch.int64"),
        ((MAP[0],), {}, ValueError, r"x: expected a map \[N, C, H, W\], got shape \[3, 4, 2\]"),
        ((MAP[:, :, :0],), {}, ValueError, r"x: expected a map of at least one position, got shape \[2, 3, 0, 2\]"),
        ((MAP,), {"p": 0}, ValueError, "p: expected a number above 0, got 0"),
        ((MAP,), {"p": "3"}, TypeError, "p: expected a number, got str"),
        ((MAP,), {"p": torch.tensor(3)}, TypeError, "p: expected a number or a floating-point tensor, got torch.int64"),
        ((MAP,), {"p": torch.ones(3)}, ValueError, r"p: expected one element, got shape \[3\]"),
        ((MAP,), {"p": torch.ones(1).to("meta")}, ValueError, "p: expected device cpu as x, got meta"),
        ((MAP,), {"eps": 0.0}, ValueError, r"eps: expected a number above 0, got 0\.0"),
        ((MAP,), {"eps": None}, TypeError, "eps: expected a number, got NoneType"),
    ],
)
def test_a_wrong_argument_is_named(args, kwargs, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        F.gem_pool(*args, **kwargs)


def test_the_op_checks_shapes_under_the_compiler_too():
    with pytest.raises(ValueError, match=r"gem_pool: expected a map \[N, C, H, W\], got \[3, 4, 2\]"):
        gem_pool.overload(MAP[0].to("meta"), None, 3.0, 1e-6, True)
