"""MCE's objective and memories against the oracle, which shares no code with them."""

import mce_oracle as oracle
import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from vifast.systems.mce import ClassMemory, MCEObjective
from vifast.testing import assert_close_to_oracle

PARTS = ["loss", "center", "global", "visible", "infrared", "auxiliary", "kl"]


def case(n=6, classes=5, d=7, dtype=torch.float64, device="cpu"):
    """An objective whose live memories and anchors differ, unit rows not far from them, and labels."""
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) // 2 % classes
    centers = torch.randn(3, classes, d, generator=generator, dtype=torch.float64)
    feat = normalize(centers[:, labels] + 0.8 * torch.randn(3, n, d, generator=generator, dtype=torch.float64), dim=2)
    made = MCEObjective(classes, d).to(device, dtype)
    made.memory.fill(centers.to(device, dtype))
    moved = made.memory.live + 0.1 * torch.randn(4, classes, d, generator=generator).to(device, dtype)
    made.memory.live.copy_(moved)
    return made, feat.to(device, dtype).requires_grad_(), labels.to(device)


def expected(made, feat, labels, **options):
    memories = made.memory.live.cpu(), made.memory.anchors.cpu()
    return oracle.objective(feat.detach().cpu(), labels.cpu(), *memories, **options)


def test_every_part_is_the_oracle_s():
    made, feat, labels = case()
    parts = made(feat, labels)
    assert list(parts) == PARTS
    for name, value in expected(made, feat, labels).items():
        assert_close(parts[name].item(), value, rtol=1e-12, atol=1e-12, msg=name)
    assert parts["center"] > 0
    assert parts["kl"] > 0


@pytest.mark.parametrize("sizes", [(6, 5, 7), (32, 20, 40), (1, 1, 3)])
def test_float32_on_every_back_end(backend, sizes):
    made, feat, labels = case(*sizes, dtype=torch.float32, device=backend.device)
    if sizes[1] == 1:  # without another class no distance to it
        assert made(feat, labels)["center"] == 0
        return
    parts, wide = made(feat, labels), case(*sizes)
    wide[0].load_state_dict({name: value.double().cpu() for name, value in made.state_dict().items()})
    rows = feat.detach().double().cpu().requires_grad_()
    double = wide[0](rows, labels.cpu())
    for name, value in expected(wide[0], rows, labels.cpu()).items():
        assert_close_to_oracle(parts[name], torch.tensor(value, dtype=torch.float64), length=sizes[2])
    (grad,), (wanted,) = torch.autograd.grad(parts["loss"], feat), torch.autograd.grad(double["loss"], rows)
    assert_close_to_oracle(grad, wanted, length=sizes[2])


@pytest.mark.parametrize("name", PARTS)
def test_gradients_are_those_of_the_oracle(name):
    """By central differences, with the rows held that the divergence is to."""
    made, feat, labels = case(4, 3, 4)
    (grad,) = torch.autograd.grad(made(feat, labels)[name], feat)
    step, rows = 1e-6, feat.detach()

    def value(at, change):
        moved = rows.clone()
        moved.view(-1)[at] += change
        return expected(made, moved, labels, taught_by=rows)[name]

    slopes = [(value(at, step) - value(at, -step)) / (2 * step) for at in range(rows.numel())]
    assert_close(grad.flatten(), torch.tensor(slopes, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_memories_get_no_gradient_and_stay():
    made, feat, labels = case()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made(feat, labels)["loss"].backward()
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert list(made.parameters()) == []


def test_filled_memories():
    memory = ClassMemory(2, 2)
    memory.fill(torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]))
    assert_close(memory.live[:, 0], torch.tensor([[0.6, 0.8], [0, 1], [1, 0], [1.6 / 3, 1.8 / 3]]))
    assert_close(memory.live[:, 1], torch.tensor([[0.0, 0.0], [0, 1], [1, 0], [1 / 3, 1 / 3]]))
    assert torch.equal(memory.anchors, memory.live)
    memory.move(torch.tensor([[[1.0, 0.0]]] * 3), torch.tensor([1]))
    assert torch.equal(memory.anchors[:, 0], memory.live[:, 0])
    assert not torch.equal(memory.anchors[:, 1], memory.live[:, 1])


def test_weights_and_temperature_reach_the_loss():
    made, feat, labels = case()
    other = MCEObjective(5, 7, temperature=0.2, margin=0.7, auxiliary_weight=0.0, kl_weight=2.0).double()
    other.load_state_dict(made.state_dict())
    wanted = oracle.objective(feat.detach(), labels, made.memory.live, made.memory.anchors, temperature=0.2, margin=0.7)
    parts = other(feat, labels)
    for name in PARTS[1:]:
        assert_close(parts[name].item(), wanted[name], rtol=1e-12, atol=1e-12, msg=name)
    total = sum(wanted[name] for name in ("center", "global", "visible", "infrared")) + 2.0 * wanted["kl"]
    assert_close(parts["loss"].item(), total, rtol=1e-12, atol=1e-12)


def test_the_losses_are_few_calls():
    """Ops of ours and of PyTorch that make a tensor, forward; the published code takes hundreds."""

    class Calls(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            views = all(r.alias_info is not None for r in func._schema.returns)
            self.count += not views and "empty" not in func._schema.name
            return func(*args, **(kwargs or {}))

    made, feat, labels = case(32, 20, 40, dtype=torch.float32)
    with Calls() as calls:
        made(feat, labels)
    assert calls.count <= 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a number above 0"),
        ({"margin": -1.0}, "margin: expected at least 0"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight: expected at least 0"),
        ({"kl_weight": -1.0}, "kl_weight: expected at least 0"),
        ({"keep": 2.0}, "keep: expected 0 to 1"),
        ({"keep_global": -0.1}, "keep_global: expected 0 to 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MCEObjective(3, 4, **options)


def test_wrong_tensors_are_named():
    made, feat, labels = case()
    with pytest.raises(ValueError, match=r"feat: expected shape \[3, N, 7\], got \[2, 6, 7\]"):
        made(feat[:2], labels)
    with pytest.raises(ValueError, match=r"labels: expected shape \[6\], one per row of feat\[0\], got \[5\]"):
        made(feat, labels[:5])
