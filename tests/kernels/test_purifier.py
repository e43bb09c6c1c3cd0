import pytest
import torch
from torch.testing import assert_close

from vifast.kernels.purifier import instance_stats, purifier, purifier_backward
from vifast.testing import MAP_LAYOUTS, assert_close_to_oracle, check_op, check_values, feature_map, with_map_layout

both_modes = pytest.mark.parametrize("instance", [True, False])


def arguments(n, c, h, w, *, instance=True, dtype=torch.float32, device="cpu", layout="contiguous"):
    """The op's arguments; maps and affine require grad. Without ``instance`` the statistics are not those of x."""
    maps = [feature_map(n, c, h, w, seed=s, dtype=dtype, device=device, low=-9.0) for s in range(3)]
    mean, var = instance_stats(maps[0])
    if not instance:
        mean, var = mean[:1].expand(n, c) + 0.1, var[:1].expand(n, c) * 1.2
    weight, bias = torch.linspace(0.6, 1.4, c).to(mean), torch.linspace(-0.3, 0.3, c).to(mean)
    maps = [with_map_layout(m, layout).requires_grad_() for m in maps]
    return *maps, mean, (var + 1e-5).rsqrt(), weight.requires_grad_(), bias.requires_grad_(), instance


def plainly(x, gate_u, gate_x, weight, bias):
    """The formula with PyTorch's instance normalisation and masks."""
    u = torch.nn.functional.instance_norm(x, weight=weight, bias=bias)
    mask_u, mask_x = gate_u.sigmoid(), gate_x.sigmoid()
    maps = mask_u * mask_x * x + mask_x * mask_u * u, x, mask_x * x, u, mask_u * u
    return torch.stack([m.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3) for m in maps])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_definition_and_closed_gradient_are_those_of_the_formula(layout):
    *maps, mean, rstd, weight, bias, _ = arguments(3, 5, 6, 4, dtype=torch.float64, layout=layout)
    ours = purifier(*maps, mean, rstd, weight, bias, True)
    theirs = plainly(*maps, weight, bias)
    definition = purifier.definition(*maps, mean, rstd, weight, bias, True)
    cotangent = torch.randn(ours.shape, dtype=ours.dtype)
    leaves = *maps, weight, bias
    wanted = torch.autograd.grad(theirs, leaves, cotangent)
    for pooled in (ours, definition):
        assert_close(pooled, theirs, rtol=1e-9, atol=1e-11)
        for grad, leaf, plain in zip(torch.autograd.grad(pooled, leaves, cotangent), leaves, wanted, strict=True):
            assert_close(grad, plain, rtol=1e-9, atol=1e-11)
            assert pooled is definition or grad.stride() == leaf.stride()


@both_modes
@pytest.mark.parametrize("layout", MAP_LAYOUTS)
def test_values_on_every_back_end(backend, instance, layout):
    args = arguments(2, 5, 7, 3, instance=instance, device=backend.device, layout=layout)
    check_values(purifier, args, length=21, outputs=1)


@pytest.mark.parametrize("shape", [(1, 1, 2, 1), (2, 1, 4, 2), (2, 35, 2, 1), (2, 33, 24, 9), (1, 3, 40, 33)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_shapes(backend, shape, layout):
    check_values(
        purifier, arguments(*shape, device=backend.device, layout=layout), length=shape[2] * shape[3], outputs=1
    )


@both_modes
def test_one_position_and_no_images(backend, instance):
    for shape in ((2, 3, 1, 1), (0, 3, 4, 2)):
        args = arguments(*shape, instance=False, device=backend.device)[:-1]
        pooled = purifier(*args, instance)
        pooled.sum().backward()
        assert pooled.shape == (5, shape[0], 3)
        assert all(a.grad.isfinite().all() for a in args if a.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_half_maps(backend, dtype, layout):
    check_values(
        purifier, arguments(2, 19, 6, 5, dtype=dtype, device=backend.device, layout=layout), length=30, outputs=1
    )


def test_maps_of_different_dtypes_and_layouts(backend):
    x, gate_u, gate_x, *rest = arguments(2, 5, 4, 3, device=backend.device)
    gate_u = with_map_layout(gate_u.detach().bfloat16(), "channels_last").requires_grad_()
    check_values(purifier, (x, gate_u, gate_x, *rest), length=12, outputs=1)


@both_modes
def test_op(instance):
    check_op(purifier, lambda n: arguments(n, 4, 3, 2, instance=instance), length=6, outputs=1)


def test_backward_and_statistics_ops():
    args = arguments(2, 3, 4, 2)
    pooled = purifier(*args).detach()
    args = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
    torch.library.opcheck(purifier_backward.overload, (torch.ones_like(pooled), pooled, *args))
    torch.library.opcheck(instance_stats.overload, (args[0],))


@pytest.mark.parametrize("layout", MAP_LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics(backend, layout, dtype):
    for offset in (0.0, 30.0):  # a large mean costs the variance no digits
        x = with_map_layout(feature_map(2, 19, 24, 9, device=backend.device) + offset, layout).to(dtype)
        for ours, oracle in zip(instance_stats(x), instance_stats(x.double()), strict=True):
            assert_close_to_oracle(ours, oracle, length=216)


def test_a_nan_stays_in_its_channel(backend):
    args = arguments(2, 3, 4, 2, device=backend.device)
    clean = purifier(*args)
    wanted = torch.autograd.grad(clean.sum(), args[:3])
    maps = [m.detach().clone() for m in args[:3]]
    maps[0][1, 2, 0, 0] = maps[1][0, 0, 1, 1] = torch.nan
    maps = [m.requires_grad_() for m in maps]
    pooled = purifier(*maps, *args[3:])
    rest = torch.ones(2, 3, dtype=torch.bool, device=clean.device)
    rest[1, 2] = rest[0, 0] = False
    assert pooled[1:, 1, 2].isnan().all()
    assert pooled[0, 0, 0].isnan()
    assert torch.equal(pooled[:, rest], clean[:, rest])
    for grad, plain in zip(torch.autograd.grad(pooled.sum(), maps), wanted, strict=True):
        assert torch.equal(grad[rest], plain[rest])


def test_large_gates_and_constant_planes_are_finite(backend):
    x, gate_u, gate_x, *rest = arguments(2, 3, 4, 2, device=backend.device)
    gates = [torch.where(gate.abs() > 0.5, 1e4 * gate, gate).detach().requires_grad_() for gate in (gate_u, gate_x)]
    check_values(purifier, (x, *gates, *rest), length=8, outputs=1)
    flat = torch.ones_like(x).requires_grad_()
    mean, var = instance_stats(flat.detach())
    pooled = purifier(flat, *gates, mean, (var + 1e-5).rsqrt(), *rest[2:])
    pooled.sum().backward()
    assert var.eq(0).all()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bits_do_not_depend_on_threads(with_threads, layout):
    results = []
    for threads in (1, 2):
        with_threads(threads)
        args = arguments(30, 70, 12, 6, layout=layout)
        pooled = purifier(*args)
        results.append((*instance_stats(args[0]), pooled, *torch.autograd.grad(pooled.sum(), args[:3] + args[5:7])))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_instruction_set(isa, dtype):
    check_values(purifier, arguments(2, 37, 9, 5, dtype=dtype), length=45, outputs=1)


def test_the_op_checks_shapes_under_the_compiler_too():
    x, *rest = (a.detach().to("meta") for a in arguments(2, 3, 4, 2)[:-1])
    with pytest.raises(ValueError, match=r"purifier: expected three maps \[N, C, H, W\].*got \[\[2, 3, 4, 1\]"):
        purifier.overload(x[..., :1], *rest, True)
