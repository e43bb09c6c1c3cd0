import contextlib
import copy
from math import cos, sin

import pytest
import torch
from torch.testing import assert_close

import vifast
from vifast.nn import ModalityPrompts

SMALL = {"channels": 2, "cell": 2, "specific": 3, "common": 4, "gate": 1}


def batch(n=6, side=8, dtype=torch.float64):
    return torch.randn(n, 2, side, side // 2, dtype=dtype), torch.arange(n) % 2


def written_out(module, images, modality):
    """The prompt by the words of the spec: cells cut by slicing, each modality on its own, PyTorch's norms."""
    (b, c, h, w), side = images.shape, module.cell
    cells = images.view(b, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * side**2)
    prompt = torch.zeros_like(cells)
    for m, part in enumerate(module.specific):
        rows = cells[modality == m]
        if len(rows):
            prompt[modality == m] = part.up(part.norm(part.down(rows).flatten(0, 1))).view_as(rows)
    common = module.common
    hidden = common.down(cells).mT.unflatten(2, (h // side, w // side))
    normed = common.norm(hidden)
    a, b_ = common.gate_raw(hidden), common.gate_normed(normed)
    prompt = prompt + common.up((a * hidden + (1 - a) * b_ * normed).relu().flatten(2).mT)
    return prompt.view(b, h // side, w // side, c, side, side).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def trained(**options):
    """A module whose affine parameters and running statistics are not those of a fresh one."""
    module = ModalityPrompts(**SMALL, dropout=0.0, **options).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    module(*batch())
    return module


def test_parameter_counts():
    module = ModalityPrompts()
    assert sum(p.numel() for p in module.specific.parameters()) == 50_784
    assert sum(p.numel() for p in module.common.parameters()) == 13_144
    assert all(layer.weight.std() < 0.021 for layer in module.modules() if isinstance(layer, torch.nn.Linear))


@pytest.mark.parametrize("modality", [[0, 1, 0, 1, 1, 0], [1] * 6, [0] * 6])
def test_values_gradients_and_statistics(modality):
    module = trained(running_at_eval=True)
    other, modality = copy.deepcopy(module), torch.tensor(modality)
    for training in (True, False):
        images = batch()[0].requires_grad_()
        prompted, prompt = module.train(training)(images, modality)
        wanted = written_out(other.train(training), images, modality)
        assert_close(prompt, wanted)
        assert_close(prompted, images + wanted)
        cotangent = torch.randn_like(prompt)
        grads = torch.autograd.grad(prompt, [images, *module.parameters()], cotangent)
        plain = torch.autograd.grad(wanted, [images, *other.parameters()], cotangent, allow_unused=True)
        for one, two in zip(grads, plain, strict=True):
            assert_close(one, torch.zeros_like(one) if two is None else two)
        assert_close(module.state_dict(), other.state_dict())


def test_an_absent_modality_keeps_its_statistics_and_gets_no_gradient():
    module = trained()
    before = copy.deepcopy(module.specific[1].state_dict())
    module(batch()[0], torch.zeros(6, dtype=torch.int64))[1].sum().backward()
    assert_close(module.specific[1].state_dict(), before, rtol=0, atol=0)
    assert all(p.grad.eq(0).all() for p in module.specific[1].parameters())


def test_a_nan_image_does_not_reach_the_other_modality():
    module, (images, modality) = trained(), batch()
    images[1] = torch.nan
    prompt = module(images, modality)[1]
    assert prompt[modality == 0].isfinite().all()
    assert prompt[1].isnan().all()
    assert module.specific[0].norm.running_var.isfinite().all()


def test_gate_vector_of_the_spec():
    mixture = ModalityPrompts(**SMALL).double().common
    c = range(4)
    with torch.no_grad():
        for layer, values in (
            (mixture.gate_raw[0], [cos(0.4 * k) for k in c]),
            (mixture.gate_raw[2], [sin(1 + 0.3 * k) for k in c]),
            (mixture.gate_normed[0], [cos(0.2 + 0.6 * k) for k in c]),
            (mixture.gate_normed[2], [sin(0.5 + 0.2 * k) for k in c]),
        ):
            layer.weight.copy_(torch.tensor(values, dtype=torch.float64).view(layer.weight.shape))
    b, k, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 4, 2, 2)), indexing="ij")
    for training in (True, False):  # instances by their own statistics in both modes
        mixed = mixture.train(training).mixed(torch.sin(0.9 * b + 0.5 * k + 0.3 * y + 0.7 * x))
        first = torch.tensor([-0.16339423, 0.22518231, 0.52569086, 0.88768353], dtype=torch.float64)
        last = torch.tensor([0.79512624, 0.42510746, 0.08504653, -0.32785222], dtype=torch.float64)
        assert_close(mixed[0, :, 0, 0], first, rtol=0, atol=1e-8)
        assert_close(mixed[1, :, 1, 1], last, rtol=0, atol=1e-8)
        assert_close(mixed.relu().sum().item(), 20.186296931, rtol=0, atol=1e-9)


def test_running_statistics_in_eval_mode_are_a_choice():
    images, modality = batch()
    own, running = trained(), trained(running_at_eval=True)
    running.load_state_dict(own.state_dict())
    assert_close(own.train()(images, modality), running.train()(images, modality))
    assert not torch.allclose(own.eval()(images, modality)[1], running.eval()(images, modality)[1])


def test_dropout_drops_pixels_of_each_part_in_training_only():
    module, (images, modality) = ModalityPrompts(**SMALL, dropout=1.0), batch(dtype=torch.float32)
    assert module(images, modality)[1].eq(0).all()
    assert module.eval()(images, modality)[1].ne(0).any()
    half = ModalityPrompts(**SMALL, dropout=0.5)
    share = half(images, modality)[1].eq(0).float().mean()
    assert 0.1 < share < 0.5  # a quarter, where both parts are dropped


def test_dropout_follows_the_seed_of_torch():
    module, (images, modality) = ModalityPrompts(**SMALL), batch(dtype=torch.float32)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn += [module(images, modality)[1]]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[2], module(images, modality)[1])


@pytest.mark.parametrize("path", ["kernels", "definition"])
def test_nothing_is_read_from_the_device(path, request):
    module, (images, modality) = ModalityPrompts(**SMALL), batch(dtype=torch.float32)
    request.getfixturevalue("no_host_reads")  # PyTorch reads when it draws weights
    with vifast.use_reference() if path == "definition" else contextlib.nullcontext():
        sum(x.sum() for x in module(images, modality)).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_step_of_training_is_one_graph():
    module, (images, modality) = ModalityPrompts(**SMALL, dropout=0.0), batch(dtype=torch.float32)
    other = copy.deepcopy(module)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    found = []
    for run, of in ((compiled, module), (other, other)):
        prompt = run(images, modality)[1]
        found.append((prompt, *torch.autograd.grad(prompt.square().sum(), list(of.parameters()))))
    for one, two in zip(*found, strict=True):
        assert_close(one, two)
    assert_close(module.state_dict(), other.state_dict())


def test_either_part_can_be_left_out():
    whole, (images, modality) = trained().eval(), batch()
    parts = []
    for left_out in ("specific", "common"):
        module = ModalityPrompts(**SMALL | {left_out: 0}, dropout=0.0).double().eval()
        kept = {name: value for name, value in whole.state_dict().items() if not name.startswith(left_out)}
        module.load_state_dict(kept)
        parts.append(module(images, modality)[1])
    assert_close(sum(parts), whole(images, modality)[1])
    with pytest.raises(ValueError, match=r"^common: expected an integer >= 1, got 0$"):
        ModalityPrompts(specific=0, common=0)


def test_sizes_dtypes_and_compilation():
    module = ModalityPrompts()
    images, modality = torch.rand(4, 3, 64, 48), torch.tensor([0, 0, 1, 1], dtype=torch.uint8)
    assert module(images, modality)[0].shape == images.shape
    prompted, prompt = module(images[:0], modality[:0])
    assert prompted.shape == prompt.shape == (0, 3, 64, 48)
    assert module.bfloat16()(images.bfloat16(), modality)[0].dtype == torch.bfloat16
    module.float().eval()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_close(compiled(images, modality), module(images, modality))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cell": 0}, ValueError, "cell: expected an integer >= 1, got 0"),
        ({"specific": 1.5}, TypeError, "specific: expected an integer, got float"),
        ({"dropout": 1.5}, ValueError, r"dropout: expected a probability in 0\.\.1, got 1\.5"),
        ({"dropout": "0.1"}, TypeError, "dropout: expected a number, got str"),
    ],
)
def test_a_wrong_option_is_named(options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        ModalityPrompts(**options)


IMAGES = torch.zeros(2, 3, 32, 16)
WANTED = r"expected \[B, 3, H, W\] with H and W multiples of 16"


@pytest.mark.parametrize(
    ("images", "modality", "error", "message"),
    [
        (IMAGES[0], [0], ValueError, r"images: expected a map \[N, C, H, W\], got shape \[3, 32, 16\]"),
        (IMAGES[:, :2], [0, 1], ValueError, rf"images: {WANTED}, got shape \[2, 2, 32, 16\]"),
        (IMAGES[:, :, :24], [0, 1], ValueError, rf"images: {WANTED}, got shape \[2, 3, 24, 16\]"),
        (IMAGES[:, :, :16], [0, 1], ValueError, r"images: expected more than one cell of 16 x 16, got shape .*"),
        (IMAGES, [0], ValueError, r"modality: expected shape \[2\], one per row of images, got \[1\]"),
        (IMAGES, [0.0, 1.0], TypeError, "modality: expected an integer tensor, got torch.float32"),
    ],
)
def test_a_wrong_argument_is_named(images, modality, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        ModalityPrompts()(images, torch.tensor(modality))
