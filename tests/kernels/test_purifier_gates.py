import pytest
import torch
from torch.nn.functional import conv2d, instance_norm
from torch.testing import assert_close

from vifast.kernels import purifier_gates as file
from vifast.kernels.purifier import instance_stats
from vifast.kernels.purifier_gates import purifier_gates, purifier_gates_backward
from vifast.testing import MAP_LAYOUTS, assert_close_to_oracle, check_op, check_values, feature_map, with_map_layout


def arguments(
    n,
    c,
    h,
    w,
    *,
    hidden=3,
    dtype=torch.float32,
    conv=None,
    device="cpu",
    layout="contiguous",
    offset=0.0,
    instance=True,
):
    """The op's arguments; the map, the convolutions and the affine require grad."""
    x = with_map_layout((feature_map(n, c, h, w, device=device) + offset).to(dtype), layout)
    mean, var = instance_stats(x)
    if not instance:
        mean, var = mean[:1].expand(n, c) + 0.1, var[:1].expand(n, c) * 1.2
    weight, bias = torch.linspace(0.6, 1.4, c).to(mean), torch.linspace(-0.3, 0.3, c).to(mean)
    generator = torch.Generator().manual_seed(1)
    shapes = [(hidden, c, 1, 1), (c, hidden, 1, 1)] * 2
    convs = [torch.randn(s, generator=generator).to(device, conv or dtype) / s[1] ** 0.5 for s in shapes]
    rows = mean, (var + 1e-5).rsqrt()
    x, *convs, weight, bias = (a.detach().requires_grad_() for a in (x, *convs, weight, bias))
    return x, *convs, *rows, weight, bias, instance


def with_tensors(args, change):
    return [change(a) if isinstance(a, torch.Tensor) else a for a in args]


def tensors_with_grad(args):
    return [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]


def formula(x, down_u, up_u, down_x, up_x, mean, rstd, weight, bias, instance):
    u = instance_norm(x, weight=weight, bias=bias)
    return conv2d(conv2d(u, down_u).relu(), up_u), conv2d(conv2d(x, down_x).relu(), up_x)


@pytest.fixture
def one_image_at_a_time(monkeypatch):
    monkeypatch.setattr(file, "SLAB", {"cpu": 1, "cuda": 1})


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("reference", [True, False])
def test_values_and_gradients_are_those_of_the_formula(layout, reference):
    args = arguments(3, 5, 6, 4, dtype=torch.float64, layout=layout)
    leaves = tensors_with_grad(args)
    theirs, ours = formula(*args), (purifier_gates.definition if reference else purifier_gates)(*args)[:2]
    cotangents = [torch.randn_like(gate) for gate in theirs]
    wanted = torch.autograd.grad(theirs, leaves, cotangents)
    for one, other in zip((*ours, *torch.autograd.grad(ours, leaves, cotangents)), (*theirs, *wanted), strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layout", MAP_LAYOUTS)
@pytest.mark.parametrize("instance", [True, False])
def test_values(backend, layout, instance):
    args = arguments(4, 19, 7, 3, device=backend.device, layout=layout, instance=instance)
    check_values(purifier_gates, args, length=84, outputs=2)


@pytest.mark.usefixtures("one_image_at_a_time")
@pytest.mark.parametrize("shape", [(5, 6, 4, 2), (1, 1, 2, 1), (3, 35, 24, 9)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_slabs(shape, layout):
    check_values(purifier_gates, arguments(*shape, layout=layout), length=shape[0] * shape[2] * shape[3], outputs=2)


def results_and_gradients(function, args):
    """Those of a fixed weighting, in float64."""
    args = with_tensors(args, lambda a: a.detach().requires_grad_(a.requires_grad))
    out = function(*args)[:2]
    generator = torch.Generator().manual_seed(1)
    total = sum((torch.randn(h.shape, generator=generator) * h.cpu()).sum() for h in out)
    grads = torch.autograd.grad(total, tensors_with_grad(args))
    return [r.detach().double() for r in (*out, *grads)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_products_in_half_types(dtype, wide, offset):
    """As under autocast, or of half maps: at most twice the error of the definition, and one rounding."""
    args = arguments(4, 64, 6, 5, dtype=torch.float32 if wide else dtype, conv=dtype, offset=offset)
    assert [g.dtype for g in purifier_gates(*args)] == [dtype] * 4
    wanted = results_and_gradients(
        purifier_gates.definition, with_tensors(args, lambda a: a.detach().double().requires_grad_(a.requires_grad))
    )
    found = (results_and_gradients(f, args) for f in (purifier_gates, purifier_gates.definition))
    for ours, eager, oracle in zip(*found, wanted, strict=True):
        bound = 2 * (eager - oracle).abs().max() + torch.finfo(dtype).eps * oracle.abs().max()
        assert (ours - oracle).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_mean_costs_no_digits(dtype):
    args = arguments(2, 64, 12, 6, dtype=dtype, offset=30.0)
    ours = purifier_gates(*args)[0]
    wanted, eager = (formula(*with_tensors(args, lambda a, d=d: a.detach().to(d)))[0] for d in (torch.float64, dtype))
    assert_close_to_oracle(ours, wanted, length=64, eager=eager)


def test_no_images():
    args = arguments(0, 4, 3, 2)
    gates = purifier_gates(*args)[:2]
    assert [g.shape for g in gates] == [(0, 4, 3, 2)] * 2
    (gates[0].sum() + gates[1].sum()).backward()
    assert all((a.grad == 0).all() for a in tensors_with_grad(args))


@pytest.mark.parametrize("used", [0, 1])
def test_one_result_alone_gives_its_gradient(used):
    args = arguments(2, 4, 3, 2, dtype=torch.float64)
    leaves = tensors_with_grad(args)
    ours, theirs = (
        torch.autograd.grad(f(*args)[used].square().sum(), leaves, allow_unused=True, materialize_grads=True)
        for f in (purifier_gates, purifier_gates.definition)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


def test_op():
    check_op(purifier_gates, lambda n: arguments(n, 4, 3, 2), length=54, outputs=2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_backward_op(layout):
    args = with_tensors(arguments(2, 4, 3, 2, layout=layout), torch.Tensor.detach)
    *gates, hidden_u, hidden_x = purifier_gates(*args)
    args = (*(torch.ones_like(g) for g in gates), hidden_u, hidden_x, *args)
    torch.library.opcheck(purifier_gates_backward.overload, args)
    made = purifier_gates_backward(*args)[0]
    assert made.stride() == args[4].stride()


def test_autocast_changes_nothing():
    args = arguments(2, 16, 4, 3)
    leaves = tensors_with_grad(args)
    plain = purifier_gates(*args)[:2]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = purifier_gates(*args)[:2]
        grads = torch.autograd.grad(sum(h.sum() for h in mixed), leaves)
    for one, other in zip(
        (*mixed, *grads), (*plain, *torch.autograd.grad(sum(h.sum() for h in plain), leaves)), strict=True
    ):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.usefixtures("one_image_at_a_time")
def test_a_nan_stays_in_its_image():
    args = arguments(3, 4, 3, 2)
    clean = purifier_gates(*args)[:2]
    (wanted,) = torch.autograd.grad(sum(g.sum() for g in clean), args[0])
    x = args[0].detach().clone()
    x[1, 2, 0, 0] = torch.nan
    mean, var = instance_stats(x)
    gates = purifier_gates(x.requires_grad_(), *args[1:5], mean, (var + 1e-5).rsqrt(), *args[7:])[:2]
    (grad,) = torch.autograd.grad(sum(g.sum() for g in gates), x)
    assert gates[0][1].isnan().all()
    for one, other in zip((*gates, grad), (*clean, wanted), strict=True):
        assert torch.equal(one[::2], other[::2])


def test_the_op_checks_shapes_under_the_compiler_too():
    x, down_u, *rest = with_tensors(arguments(2, 4, 3, 2), lambda a: a.detach().to("meta"))
    with pytest.raises(ValueError, match=r"^purifier_gates: \[\[2, 4, 1, 1\],.* do not fit a map \[2, 4, 3, 2\]$"):
        purifier_gates.overload(x, down_u[:2], *rest)
