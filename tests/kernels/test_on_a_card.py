"""What only a card can show of every op that is timed: the same bits again and again, on any stream and device, and in
a CUDA graph. Values are tested where the other back ends' are, by the ``backend`` fixture."""

import pytest
import torch

from vifast.bench import CASES

ROUNDS = 20


@pytest.fixture(autouse=True)
def _nothing_is_drawn(monkeypatch):
    """A graph draws other numbers than the code that it was captured from."""
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *args, **kwargs: x)
    monkeypatch.setattr(torch.Tensor, "random_", torch.Tensor.zero_)  # the seed of the prompts' dropout


def build(case, device):
    """The op at its smallest size, its tensors on the device, and a function of fresh copies of them."""
    work = case.build(*(case.quick or case.sizes[0]), device=device)
    inner = [leaf for leaf in work.leaves if leaf.requires_grad]  # parameters of a module
    first = work.function(*copies(work.args))
    torch.manual_seed(1)
    cotangent = [torch.randn_like(x) for x in tensors(first) if x.is_floating_point()]

    def run(*args):
        """Everything the op computes of ``args``: results, and gradients of those that have one."""
        leaves = [
            a.requires_grad_() for a, own in zip(args, work.args, strict=True) if any(own is x for x in work.leaves)
        ]
        outs = tensors(work.function(*args))
        if not work.leaves:
            return [x.clone() for x in outs]
        pairs = [pair for pair in zip(floating(outs), cotangent, strict=True) if pair[0].requires_grad]
        ends, upstream = zip(*pairs, strict=True)
        return [*outs, *tensors(torch.autograd.grad(ends, [*leaves, *inner], upstream, allow_unused=True))]

    return work, run


def tensors(outs):
    return [x for x in (outs if isinstance(outs, (tuple, list)) else [outs]) if isinstance(x, torch.Tensor)]


def floating(outs):
    return [x for x in outs if x.is_floating_point()]


def copies(args, device=None):
    moved = [a if device is None or not hasattr(a, "to") else a.to(device) for a in args]
    return [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in moved]


def same_bits(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.detach().cpu(), b.detach().cpu())


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)


@every_case
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_same_bits_again(case, device):
    work, run = build(case, device)
    first = run(*copies(work.args))
    for _ in range(ROUNDS if device == "cuda" else 2):
        same_bits(run(*copies(work.args)), first)


@pytest.mark.gpu
@every_case
def test_on_a_stream_of_its_own(case):
    """The inputs appear on it late: what reads them on another stream finds them unwritten."""
    work, run = build(case, "cuda")
    expected = run(*copies(work.args))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        found = run(*copies(work.args))
    stream.synchronize()
    same_bits(found, expected)


@pytest.mark.gpu
@every_case
def test_on_a_device_that_is_not_current(case):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    if case.op.endswith("objective"):
        pytest.skip("its module lives on the first")
    work, run = build(case, "cuda:0")
    expected = run(*copies(work.args))
    same_bits(build(case, "cuda:1")[1](*copies(work.args, "cuda:1")), expected)


@pytest.mark.gpu
@every_case
def test_in_a_graph(case):
    """Captured once, replayed with other values."""
    work, run = build(case, "cuda")
    fixed = copies(work.args)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, and fills the allocator
            run(*fixed)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*fixed)
    for shift in (0, 1):
        values = [a.roll(shift, -1) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in work.args]
        for held, value in zip(fixed, copies(values), strict=True):
            if isinstance(held, torch.Tensor):
                held.detach().copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        same_bits(captured, run(*copies(values)))
