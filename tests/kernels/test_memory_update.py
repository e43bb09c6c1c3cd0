import math

import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.memory_update import memory_update
from vifast.testing import LAYOUTS, assert_close_to_oracle, with_layout


def case(streams, n, classes, d, device="cpu", dtype=torch.float32):
    """Unit rows and memories, and labels of which some are of no class."""
    generator = torch.Generator().manual_seed(streams + n + classes + d)
    memory, feat = (
        torch.nn.functional.normalize(torch.randn(*shape, d, generator=generator, dtype=torch.float64), dim=2)
        for shape in ((streams + 1, classes), (streams, n))
    )
    labels = torch.randint(-1, classes + 1, (n,), generator=generator)
    return memory.to(device, dtype), feat.to(device, dtype), labels.to(device)


def by_hand(memory, feat, labels, keep, keep_global):
    """The update in plain Python, class by class and number by number."""
    memory, feat, labels = memory.tolist(), feat.tolist(), labels.tolist()
    streams, d = len(feat), len(memory[0][0]) if memory[0] else 0

    def blend(row, step, share):
        u = [share * a + (1 - share) * b for a, b in zip(row, step, strict=True)]
        norm = max(math.sqrt(sum(a * a for a in u)), 1e-12)
        return [a / norm for a in u]

    for k in range(len(memory[0])):
        own = [i for i, label in enumerate(labels) if label == k]
        if not own:
            continue
        for s in range(streams):
            mean = [sum(feat[s][i][c] for i in own) / len(own) for c in range(d)]
            memory[s][k] = blend(memory[s][k], mean, keep)
        rows = [feat[s][i] for s in range(streams) for i in own]
        products = [sum(a * b for a, b in zip(row, memory[-1][k], strict=True)) for row in rows]
        memory[-1][k] = blend(memory[-1][k], rows[products.index(min(products))], keep_global)
    return torch.tensor(memory, dtype=torch.float64)


def test_small_table(backend):
    memory = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    feat = torch.tensor([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])
    memory, feat, labels = (x.to(backend.device) for x in (memory, feat, torch.tensor([1, 1])))
    # The means of class 1 are (2, 0) and (0, 0); of its four rows (0, 1) is the first that is orthogonal to (1, 0).
    out = F.memory_update_(memory, feat, labels, keep=0.5, keep_global=0.5)
    assert out is memory
    root = 0.5**0.5
    wanted = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [root, root]]])
    assert_close(memory.cpu(), wanted)


@pytest.mark.parametrize(
    "sizes", [(3, 32, 40, 70), (1, 5, 3, 7), (2, 0, 3, 4), (3, 9, 1, 33), (2, 4, 0, 3), (1, 1, 1, 2), (2, 200, 3, 5)]
)
def test_values_on_every_back_end(backend, sizes):
    memory, feat, labels = case(*sizes, device=backend.device)
    oracle = by_hand(memory.double(), feat.double(), labels, 0.25, 0.1)
    before = memory.clone()
    F.memory_update_(memory, feat, labels)
    if memory.numel():
        assert_close_to_oracle(memory, oracle, length=max(sizes[1], sizes[3]))
        absent = [k for k in range(sizes[2]) if k not in labels.tolist()]
        assert torch.equal(memory[:, absent], before[:, absent])


def test_definition_is_the_update_by_hand():
    memory, feat, labels = case(3, 24, 7, 11, dtype=torch.float64)
    wanted = by_hand(memory, feat, labels, 0.3, 0.2)
    assert_close(F.memory_update_(memory, feat, labels, keep=0.3, keep_global=0.2), wanted, rtol=1e-12, atol=1e-12)


def test_ties_go_to_the_lower_stream_then_row(backend):
    far, near = [0.0, 1.0], [1.0, 0.0]
    for least in ((0, 1), (1, 0)):
        feat = torch.tensor([[near, near, near], [near, near, near]])
        feat[least] = torch.tensor(far)
        feat[1, 2] = torch.tensor([0.0, -1.0])  # as far, later
        memory = torch.tensor([[near], [near], [near]])
        memory, feat, labels = (x.to(backend.device) for x in (memory, feat, torch.zeros(3, dtype=torch.int64)))
        F.memory_update_(memory, feat, labels, keep_global=0.0)
        assert memory[2, 0].tolist() == far


def test_extremes_of_the_shares(backend):
    memory, feat, _ = case(2, 6, 2, 8, device=backend.device)
    labels = torch.arange(6, device=backend.device) % 2
    kept = F.memory_update_(memory.clone(), feat, labels, keep=1.0, keep_global=1.0)
    assert_close(kept, memory)
    taken = F.memory_update_(memory.clone(), feat, labels, keep=0.0, keep_global=0.0)
    own = feat[:, labels == 0]
    assert_close(taken[:2, 0], torch.nn.functional.normalize(own.mean(1), dim=1))
    least = (own.flatten(0, 1) @ memory[2, 0]).argmin()
    assert_close(taken[2, 0], own.flatten(0, 1)[least])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_row_spoils_its_own_class_alone(backend, bad):
    memory, feat, _ = case(2, 6, 3, 8, device=backend.device)
    labels = torch.tensor([0, 0, 1, 1, 1, 2], device=backend.device)
    wanted = F.memory_update_(memory.clone(), feat, labels)
    feat[0, 3, 2] = bad
    feat[0, 3, 3] = -bad
    F.memory_update_(memory, feat, labels)
    assert not memory[0, 1].isfinite().all()
    assert not memory[2, 1].isfinite().all()
    assert torch.equal(memory[:, [0, 2]], wanted[:, [0, 2]])
    assert torch.equal(memory[1], wanted[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_types_and_strides_of_rows(backend, dtype, layout):
    memory, feat, labels = case(2, 12, 4, 9, device=backend.device)
    rows = with_layout(feat[0].to(dtype), layout)
    feat = torch.stack((rows, rows.flip(0)))
    oracle = by_hand(torch.cat((memory[:2], memory[2:])).double(), feat.double(), labels, 0.25, 0.1)
    F.memory_update_(memory, feat.transpose(1, 2).contiguous().transpose(1, 2), labels.to(torch.int16))
    assert_close_to_oracle(memory, oracle, length=12)


def test_bits_do_not_depend_on_threads(with_threads):
    memory, feat, labels = case(3, 300, 40, 500)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        results.append(F.memory_update_(memory.clone(), feat, labels))
    assert torch.equal(*results)


def test_every_instruction_set(isa):
    memory, feat, labels = case(3, 20, 5, 300)
    oracle = by_hand(memory.double(), feat.double(), labels, 0.25, 0.1)
    assert_close_to_oracle(F.memory_update_(memory, feat, labels), oracle, length=300)


def test_registration_declares_what_is_written():
    assert memory_update.overload._schema.arguments[0].alias_info.is_write
    torch.library.opcheck(memory_update.overload, (*case(2, 6, 3, 8), 0.25, 0.1))


@pytest.mark.parametrize("n", [6, 9])
def test_compiled_as_one_graph(n):
    compiled = torch.compile(lambda *args: F.memory_update_(*args).sum(), backend="aot_eager", fullgraph=True)
    memory, feat, labels = case(2, n, 3, 8)
    wanted = F.memory_update_(memory.clone(), feat, labels)
    compiled(memory, feat, labels)
    assert torch.equal(memory, wanted)


def test_a_backward_that_saved_the_memory_notices():
    memory, feat, labels = case(1, 4, 2, 3)
    product = (feat[0].requires_grad_() @ memory[0].T).sum()
    F.memory_update_(memory, feat, labels)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


WRONG = [
    ("memory", [1.0], TypeError, r"expected a tensor \[S \+ 1, K, D\], got list"),
    ("memory", torch.zeros(3, 4, 5, dtype=torch.int64), TypeError, "expected a floating-point tensor, got torch.int64"),
    ("memory", torch.zeros(4, 5), ValueError, r"expected shape \[S \+ 1, K, D\], got \[4, 5\]"),
    ("memory", torch.zeros(3, 4, 5).bfloat16(), ValueError, "expected a contiguous .* got contiguous torch.bfloat16"),
    ("memory", torch.zeros(3, 5, 4).mT, ValueError, "expected a contiguous .* got strided torch.float32"),
    ("feat", "rows", TypeError, r"expected a tensor \[S, N, D\], got str"),
    ("feat", torch.zeros(3, 6, 5), ValueError, r"expected shape \[S, N, D\] of memory \[3, 4, 5\], got \[3, 6, 5\]"),
    ("feat", torch.zeros(2, 6, 4), ValueError, r"expected shape \[S, N, D\] of memory \[3, 4, 5\], got \[2, 6, 4\]"),
    ("feat", torch.zeros(2, 6, 5, device="meta"), ValueError, "expected device cpu as memory, got meta"),
    ("labels", torch.zeros(5, dtype=torch.int64), ValueError, r"expected shape \[6\], one per row of feat\[0\], got"),
    ("keep", 1.5, ValueError, "expected 0 to 1, got 1.5"),
    ("keep_global", "x", TypeError, "expected a number, got str"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_wrong_arguments_are_named(name, value, error, message):
    args = {"memory": torch.zeros(3, 4, 5), "feat": torch.zeros(2, 6, 5), "labels": torch.zeros(6, dtype=torch.int64)}
    with pytest.raises(error, match=f"^{name}: {message}"):
        F.memory_update_(**{**args, name: value})


def test_the_op_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"memory_update: expected \[S \+ 1, K, D\], \[S, N, D\] and \[N\], got"):
        memory_update(torch.zeros(2, 4, 5), torch.zeros(2, 6, 5), torch.zeros(6, dtype=torch.int64), 0.25, 0.1)
