import pytest
import torch

from vifast.kernels.prompt_insertion import prompt_insertion, prompt_insertion_backward
from vifast.testing import assert_close_to_oracle, check_op, check_values, to_float64, with_map_layout

SEED = torch.tensor(0x1234567890ABCDEF)


def arguments(n, specific=3, common=2, sizes=(2, 6, 4), side=2, dtype=torch.float32, device="cpu", p=0.25, seed=SEED):
    """As for prompt_hidden, with values of columns; without a seed nothing is dropped."""
    generator = torch.Generator().manual_seed(0)
    packed, width, cells = 2 * specific + common, sizes[0] * side * side, sizes[1] * sizes[2] // side**2

    def drawn(*shape, of=dtype):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, of).requires_grad_()

    wide = torch.promote_types(dtype, torch.float32)
    images, values = drawn(n, *sizes), drawn(n, specific + common, cells, of=wide)
    weight, bias = drawn(width, packed), drawn(2 * (specific > 0) + (common > 0), width)
    modality = (torch.arange(n, device=device) + 1) % 2
    return images, values, modality, weight, bias, seed if seed is None else seed.to(device), p, side


def test_by_hand(backend):
    """Two cells of one pixel; a common value below 0 lets only the bias through."""
    images = torch.tensor([1.0, 2.0], device=backend.device).view(1, 1, 1, 2)
    values = torch.tensor([[[3.0, 4.0], [5.0, -6.0]]], device=backend.device)
    weight = torch.tensor([[100.0, 10.0, 1.0]], device=backend.device)
    bias = torch.tensor([[9.0], [0.5], [0.25]], device=backend.device)
    modality = torch.ones(1, dtype=torch.int64, device=backend.device)
    prompted, prompt = prompt_insertion(images, values, modality, weight, bias, None, 0.0, 1)
    assert prompt.flatten().tolist() == [35.75, 40.75]
    assert prompted.flatten().tolist() == [36.75, 42.75]


def test_op():
    check_op(prompt_insertion, arguments, length=24, outputs=2)
    images, *others, p, side = (a.detach() if isinstance(a, torch.Tensor) else a for a in arguments(3))
    torch.library.opcheck(prompt_insertion_backward.overload, (images, None, *others, p, side))


def test_gradcheck():
    images, values, modality, weight, bias, *others = arguments(3, dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda x, v, w, b: prompt_insertion(x, v, modality, w, b, *others),
        (images, values, weight, bias),
        fast_mode=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", [None, SEED], ids=["whole", "dropped"])
@pytest.mark.parametrize(
    ("n", "specific", "common", "sizes", "side"),
    [(2, 16, 8, (3, 32, 48), 16), (1, 3, 2, (2, 6, 4), 2), (4, 0, 9, (1, 9, 21), 3), (3, 17, 0, (3, 5, 40), 5)],
)
def test_values_on_every_back_end(backend, dtype, seed, n, specific, common, sizes, side):
    args = arguments(n, specific, common, sizes, side, dtype, backend.device, seed=seed)
    cotangents = [torch.randn_like(args[0]) for _ in range(2)]  # in the type of the images, for the oracle as well
    found = []
    for op, given in ((prompt_insertion, args), (prompt_insertion.definition, to_float64(args))):
        leaves = [a.detach().requires_grad_() for a in given if isinstance(a, torch.Tensor) and a.is_floating_point()]
        rest = iter(leaves)
        results = op(*(next(rest) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in given))
        grads = torch.autograd.grad(results, leaves, [c.to(r.dtype) for c, r in zip(cotangents, results, strict=True)])
        found.append((*results, *grads))
    for one, two in zip(*found, strict=True):
        assert_close_to_oracle(one, two.detach(), length=args[0].numel())


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
def test_strides_do_not_matter(backend, layout):
    images, *others = arguments(3, sizes=(2, 8, 4), device=backend.device)
    images = with_map_layout(images.detach(), layout).requires_grad_()
    check_values(prompt_insertion, (images, *others), length=96, outputs=2)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_gradient_of_either_result(backend, kept):
    args = arguments(3, device=backend.device)
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point() and a is not args[0]]
    wanted = [torch.autograd.grad(prompt_insertion.definition(*args)[kept].square().sum(), leaves)]
    wanted.append(torch.autograd.grad(prompt_insertion(*args)[kept].square().sum(), leaves))
    for one, two in zip(*wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)


def test_dropout_draws_by_part_pixel_and_seed(backend):
    images, values, modality, weight, bias, _, _, side = arguments(16, 16, 8, (3, 64, 64), 16, device=backend.device)
    values, weight = (torch.zeros_like(x) for x in (values, weight))
    bias = torch.tensor([2.0, 2.0, 1.0], device=backend.device)[:, None].expand_as(bias).contiguous()

    def drawn(seed, p):
        seed = torch.tensor(seed, device=backend.device)
        return prompt_insertion(images, values, modality, weight, bias, seed, p, side)[1] * (1 - p)

    prompt = drawn(1, 0.25)
    assert torch.equal(prompt, drawn(1, 0.25))
    for other in (2, 1 << 40):
        assert 0.3 < prompt.ne(drawn(other, 0.25)).float().mean() < 0.7
    shares = [prompt.eq(value).float().mean(0).mean().item() for value in (0.0, 1.0, 2.0, 3.0)]
    for share, wanted in zip(shares, (1 / 16, 3 / 16, 3 / 16, 9 / 16), strict=True):
        assert abs(share - wanted) < 0.005
    assert drawn(1, 1.0).eq(0).all()
    assert not prompt[0].equal(prompt[1])


def test_bits_do_not_depend_on_threads(with_threads):
    args = arguments(9, 16, 8, (3, 64, 48), 16)
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    results = []
    for threads in (1, 2):
        with_threads(threads)
        prompted, prompt = prompt_insertion(*args)
        results.append((prompted, prompt, *torch.autograd.grad((prompted * prompt).sum(), leaves)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_every_instruction_set(isa):
    check_values(prompt_insertion, arguments(3, 16, 8, (3, 32, 48), 16), length=768 * 18, outputs=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(3, 2, 5, 4)}, r"cells of 2 x 2, .* got \[3, 2, 5, 4\]"),
        ({1: torch.zeros(3, 5, 7)}, r"values \[3, R, 6\] .* got \[3, 5, 7\]"),
        ({3: torch.zeros(7, 8)}, r"by C \* 4, .* and 8 by 7"),
        ({4: torch.zeros(2, 8)}, r"bias \[3, 8\], got .* \[2, 8\]"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_that_do_not_fit_are_named(change, message, device):
    args = [change.get(k, a) for k, a in enumerate(arguments(3))]
    with pytest.raises(ValueError, match=f"^prompt_insertion: expected .*{message}"):
        prompt_insertion(*(a.detach().to(device) if isinstance(a, torch.Tensor) else a for a in args))
