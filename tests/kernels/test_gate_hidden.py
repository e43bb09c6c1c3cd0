import pytest
import torch
from torch.nn.functional import conv2d, instance_norm
from torch.testing import assert_close

from vifast.kernels import gate_hidden as file
from vifast.kernels.gate_hidden import gate_hidden, gate_hidden_backward
from vifast.kernels.purifier import instance_stats
from vifast.testing import MAP_LAYOUTS, assert_close_to_oracle, check_op, check_values, feature_map, with_map_layout


def arguments(n, c, h, w, *, hidden=3, dtype=torch.float32, conv=None, device="cpu", layout="contiguous", offset=0.0):
    """The op's arguments; the map, the convolutions and the affine require grad."""
    x = with_map_layout((feature_map(n, c, h, w, device=device) + offset).to(dtype), layout)
    mean, var = instance_stats(x)
    weight, bias = torch.linspace(0.6, 1.4, c).to(mean), torch.linspace(-0.3, 0.3, c).to(mean)
    generator = torch.Generator().manual_seed(1)
    convs = torch.randn(2, hidden, c, 1, 1, generator=generator).to(device, conv or dtype) / c**0.5
    leaves = (a.requires_grad_() for a in (x, *convs.unbind(), weight, bias))
    x, conv_u, conv_x, weight, bias = (a.detach().requires_grad_() for a in leaves)
    return x, conv_u, conv_x, mean, (var + 1e-5).rsqrt(), weight, bias


@pytest.fixture
def one_image_at_a_time(monkeypatch):
    monkeypatch.setattr(file, "SLAB", {"cpu": 1, "cuda": 1})


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("reference", [True, False])
def test_values_and_gradients_are_those_of_the_formula(layout, reference):
    args = arguments(3, 5, 6, 4, dtype=torch.float64, layout=layout)
    x, conv_u, conv_x, *_, weight, bias = args
    leaves = x, conv_u, conv_x, weight, bias
    theirs = conv2d(instance_norm(x, weight=weight, bias=bias), conv_u), conv2d(x, conv_x)
    ours = (gate_hidden.definition if reference else gate_hidden)(*args)
    cotangents = [torch.randn_like(h) for h in theirs]
    wanted = torch.autograd.grad(theirs, leaves, cotangents)
    for one, other in zip((*ours, *torch.autograd.grad(ours, leaves, cotangents)), (*theirs, *wanted), strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layout", MAP_LAYOUTS)
def test_values(backend, layout):
    check_values(gate_hidden, arguments(4, 19, 7, 3, device=backend.device, layout=layout), length=84, outputs=2)


@pytest.mark.usefixtures("one_image_at_a_time")
@pytest.mark.parametrize("shape", [(5, 6, 4, 2), (1, 1, 2, 1), (3, 35, 24, 9)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_slabs(shape, layout):
    check_values(gate_hidden, arguments(*shape, layout=layout), length=shape[0] * shape[2] * shape[3], outputs=2)


def results_and_gradients(function, args):
    """Those of a fixed weighting, in float64."""
    args = [a.detach().requires_grad_(a.requires_grad) for a in args]
    out = function(*args)
    generator = torch.Generator().manual_seed(1)
    total = sum((torch.randn(h.shape, generator=generator) * h.cpu()).sum() for h in out)
    grads = torch.autograd.grad(total, [a for a in args if a.requires_grad])
    return [r.detach().double() for r in (*out, *grads)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_products_in_half_types(dtype, wide, offset):
    """As under autocast, or of half maps: at most twice the error of the definition, and one rounding."""
    args = arguments(4, 64, 6, 5, dtype=torch.float32 if wide else dtype, conv=dtype, offset=offset)
    assert [h.dtype for h in gate_hidden(*args)] == [dtype] * 2
    wanted = results_and_gradients(
        gate_hidden.definition, [a.detach().double().requires_grad_(a.requires_grad) for a in args]
    )
    found = (results_and_gradients(f, args) for f in (gate_hidden, gate_hidden.definition))
    for ours, eager, oracle in zip(*found, wanted, strict=True):
        bound = 2 * (eager - oracle).abs().max() + torch.finfo(dtype).eps * oracle.abs().max()
        assert (ours - oracle).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_mean_costs_no_digits(dtype):
    args = arguments(2, 64, 12, 6, dtype=dtype, offset=30.0)
    ours = gate_hidden(*args)[0]
    x, conv_u, *_, weight, bias = (a.detach().double() for a in args)
    u = instance_norm(x, weight=weight, bias=bias)
    assert_close_to_oracle(ours, conv2d(u, conv_u), length=64, eager=conv2d(u.to(dtype), conv_u.to(dtype)))


def test_no_images():
    args = arguments(0, 4, 3, 2)
    hidden = gate_hidden(*args)
    assert [h.shape for h in hidden] == [(0, 3, 3, 2)] * 2
    (hidden[0].sum() + hidden[1].sum()).backward()
    assert all((a.grad == 0).all() for a in args if a.requires_grad)


@pytest.mark.parametrize("used", [0, 1])
def test_one_result_alone_gives_its_gradient(used):
    args = arguments(2, 4, 3, 2, dtype=torch.float64)
    leaves = [a for a in args if a.requires_grad]
    ours, theirs = (
        torch.autograd.grad(f(*args)[used].square().sum(), leaves, allow_unused=True, materialize_grads=True)
        for f in (gate_hidden, gate_hidden.definition)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


def test_op():
    check_op(gate_hidden, lambda n: arguments(n, 4, 3, 2), length=54, outputs=2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_backward_op(layout):
    args = [a.detach() for a in arguments(2, 4, 3, 2, layout=layout)]
    grads = [torch.ones_like(h) for h in gate_hidden(*args)]
    torch.library.opcheck(gate_hidden_backward.overload, (*grads, *args))
    made = gate_hidden_backward(*grads, *args)[0]
    assert made.stride() == args[0].stride()


def test_autocast_changes_nothing():
    args = arguments(2, 16, 4, 3)
    leaves = [a for a in args if a.requires_grad]
    plain = gate_hidden(*args)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gate_hidden(*args)
        grads = torch.autograd.grad(sum(h.sum() for h in mixed), leaves)
    for one, other in zip(
        (*mixed, *grads), (*plain, *torch.autograd.grad(sum(h.sum() for h in plain), leaves)), strict=True
    ):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.usefixtures("one_image_at_a_time")
def test_a_nan_stays_in_its_image():
    args = arguments(3, 4, 3, 2)
    clean = gate_hidden(*args)
    (wanted,) = torch.autograd.grad(sum(h.sum() for h in clean), args[0])
    x = args[0].detach().clone()
    x[1, 2, 0, 0] = torch.nan
    mean, var = instance_stats(x)
    hidden = gate_hidden(x.requires_grad_(), *args[1:3], mean, (var + 1e-5).rsqrt(), *args[5:])
    (grad,) = torch.autograd.grad(sum(h.sum() for h in hidden), x)
    assert hidden[0][1].isnan().all()
    for one, other in zip((*hidden, grad), (*clean, wanted), strict=True):
        assert torch.equal(one[::2], other[::2])


def test_the_op_checks_shapes_under_the_compiler_too():
    x, conv_u, conv_x, *rest = (a.detach().to("meta") for a in arguments(2, 4, 3, 2))
    with pytest.raises(
        ValueError, match=r"^gate_hidden: expected \[K, C, 1, 1\] twice.*got \[\[3, 4, 1, 1\], \[2, 4, 1, 1\]"
    ):
        gate_hidden.overload(x, conv_u, conv_x[:2], *rest)
