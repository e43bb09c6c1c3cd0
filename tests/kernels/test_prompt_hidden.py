import pytest
import torch

from vifast.kernels.prompt_hidden import prompt_hidden, prompt_hidden_backward
from vifast.testing import check_op, check_values, with_map_layout


def arguments(
    n, specific=3, common=2, sizes=(2, 6, 4), side=2, dtype=torch.float32, device="cpu", of_images=True, seed=0
):
    """Images, modality, weight and bias, drawn; the first image is infrared."""
    generator = torch.Generator().manual_seed(seed)
    packed, width = 2 * specific + common, sizes[0] * side * side

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    images, weight, bias = drawn(n, *sizes), drawn(packed, width), drawn(packed)
    modality = (torch.arange(n, device=device) + 1) % 2
    grown = images.requires_grad_() if of_images else images
    return grown, modality, weight.requires_grad_(), bias.requires_grad_(), specific, side


def test_by_hand(backend):
    """One channel, two cells of 2 x 2: columns sum all, the specific ones twice or ten times that."""
    images = torch.arange(16.0, device=backend.device).view(2, 1, 2, 4)
    weight = torch.tensor([2.0, 10.0, 1.0], device=backend.device)[:, None].expand(3, 4).contiguous()
    bias = torch.tensor([0.5, 0.25, 0.0], device=backend.device)
    modality = torch.tensor([0, 1], device=backend.device)
    out = prompt_hidden(images, modality, weight, bias, 1, 2)
    assert out.tolist() == [[[20.5, 36.5], [10, 18]], [[420.25, 500.25], [42, 50]]]


def test_op():
    check_op(prompt_hidden, arguments, length=24, outputs=1)
    images, modality, weight, _, *sizes = (a.detach() if isinstance(a, torch.Tensor) else a for a in arguments(3))
    grad = torch.randn(3, 5, 6)
    for of_images in (False, True):
        torch.library.opcheck(prompt_hidden_backward.overload, (grad, images, modality, weight, *sizes, of_images))


def test_gradcheck():
    *inputs, specific, side = arguments(3, dtype=torch.float64)
    images, modality, weight, bias = inputs
    torch.autograd.gradcheck(
        lambda x, w, b: prompt_hidden(x, modality, w, b, specific, side), (images, weight, bias), fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "specific", "common", "sizes", "side"),
    [(2, 16, 8, (3, 32, 48), 16), (1, 3, 2, (2, 6, 4), 2), (4, 0, 9, (1, 9, 21), 3), (3, 17, 0, (3, 5, 40), 5)],
)
def test_values_on_every_back_end(backend, dtype, n, specific, common, sizes, side):
    args = arguments(n, specific, common, sizes, side, dtype, backend.device)
    check_values(prompt_hidden, args, length=n * sizes[0] * sizes[1] * sizes[2], outputs=1)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
def test_strides_do_not_matter(backend, layout):
    images, *others = arguments(3, sizes=(2, 8, 4), device=backend.device)
    images = with_map_layout(images.detach(), layout).requires_grad_()
    check_values(prompt_hidden, (images, *others), length=96, outputs=1)


def test_images_without_gradient_get_none(backend):
    args = arguments(3, of_images=False, device=backend.device)
    check_values(prompt_hidden, args, length=24, outputs=1)


def test_a_modality_without_samples_gets_zeros(backend):
    images, modality, weight, bias, *sizes = arguments(4, device=backend.device)
    out = prompt_hidden(images, torch.zeros_like(modality), weight, bias, *sizes)
    to_weight, to_bias = torch.autograd.grad(out.sum(), (weight, bias))
    assert to_weight[3:6].eq(0).all()
    assert to_bias.tolist() == [24.0] * 3 + [0.0] * 3 + [24.0] * 2


def test_bits_do_not_depend_on_threads(with_threads):
    args = arguments(9, 16, 8, (3, 64, 48), 16)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        out = prompt_hidden(*args)
        leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_every_instruction_set(isa):
    check_values(prompt_hidden, arguments(3, 16, 8, (3, 32, 48), 16), length=768 * 18, outputs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(3, 2, 5, 4)}, r"cells of 2 x 2, .* got \[3, 2, 5, 4\], \[3\] and 8 by 8"),
        ({1: torch.zeros(2, dtype=torch.int64)}, r"got \[3, 2, 6, 4\], \[2\]"),
        ({2: torch.zeros(5, 8)}, "weights of 6 or more .* and 5 by 8"),
        ({2: torch.zeros(8, 7)}, r"by C \* 4, .* and 8 by 7"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_that_do_not_fit_are_named(change, message, device):
    args = [change.get(k, a) for k, a in enumerate(arguments(3))]
    with pytest.raises(ValueError, match=f"^prompt_hidden: expected .*{message}"):
        prompt_hidden(*(a.detach().to(device) if isinstance(a, torch.Tensor) else a for a in args))
