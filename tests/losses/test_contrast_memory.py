import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from vifast.losses.contrast_memory import ContrastMemory


def batches(count, n=4, d=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        student, teacher = torch.randn(2, n, d, generator=generator, dtype=torch.float64).to(dtype)
        yield student.requires_grad_(), teacher, torch.randint(0, 3, (n,), generator=generator)


def by_hand(student, teacher, labels, past, negatives, temperature):
    """A loop over rows; ``past`` is a list of (row, label)."""
    student, rows = normalize(student), []
    teacher = normalize(teacher)
    for i, row in enumerate(student):
        own = row @ teacher[i] / temperature
        terms = [own]
        for j, other in enumerate(teacher):
            if j != i and (negatives == "instance" or labels[j] != labels[i]):
                terms.append(row @ other / temperature)
        terms += [row @ old / temperature for old, label in past if negatives == "instance" or label != labels[i]]
        rows.append(torch.stack(terms).logsumexp(0) - own)
    return torch.stack(rows)


@pytest.mark.parametrize("negatives", ["class", "instance"])
@pytest.mark.parametrize("size", [3, 7, 100])
def test_values_and_gradients_by_hand(negatives, size):
    memory, past = ContrastMemory(size, 6, temperature=0.5, negatives=negatives).double(), []
    for student, teacher, labels in batches(5):
        wanted = by_hand(student, teacher, labels, past, negatives, 0.5)
        ours = memory(student, teacher, labels)
        assert_close(ours, wanted)
        assert_close(*(torch.autograd.grad(rows.square().sum(), student)[0] for rows in (ours, wanted)))
        past = [*past, *zip(normalize(teacher), labels, strict=True)][-size:]
    assert memory.seen == 20


def test_gradcheck():
    memory = ContrastMemory(6, 6, temperature=0.5).double()
    (_, first, labels), (student, teacher, _) = batches(2)
    memory(first, first, labels)
    torch.autograd.gradcheck(lambda x: memory.eval()(x, teacher, labels), student)


def test_scales_do_not_matter():
    memory = ContrastMemory(6, 6).double().eval()
    for student, teacher, labels in batches(1):
        assert_close(memory(20 * student, 0.1 * teacher, labels), memory(student, teacher, labels))


def test_without_negatives_it_is_zero():
    memory = ContrastMemory(6, 6)
    for student, teacher, labels in batches(2, dtype=torch.float32):
        assert torch.equal(memory(student, teacher, torch.zeros_like(labels)).detach(), torch.zeros(4))
    assert memory(torch.zeros(0, 6), torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_the_memory_moves_in_training_only_and_is_part_of_the_state():
    memory, copy = ContrastMemory(6, 6), ContrastMemory(6, 6)
    (student, teacher, labels), (other, target, _) = batches(2, dtype=torch.float32)
    memory(student, teacher, labels)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    assert sorted(before) == ["labels", "rows", "seen"]
    value = memory.eval()(other, target, labels)
    for name, wanted in before.items():
        assert torch.equal(memory.state_dict()[name], wanted)
    copy.load_state_dict(before)
    assert torch.equal(copy.eval()(other, target, labels), value)


def test_two_forwards_before_the_backward():
    memory = ContrastMemory(6, 6)
    total = sum(memory(*batch).sum() for batch in batches(2, dtype=torch.float32))
    total.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_and_autocast(dtype):
    memory = ContrastMemory(6, 6).eval()
    for student, teacher, labels in batches(1, dtype=dtype):
        plain = memory(student, teacher, labels)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(memory(student, teacher, labels), plain)
        assert plain.dtype == torch.float32


def test_one_graph():
    memory, twin = ContrastMemory(6, 6), ContrastMemory(6, 6)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for batch in batches(3, dtype=torch.float32):
        assert_close(compiled(*batch), memory(*batch))
    assert_close(twin.rows, memory.rows)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((0, 4), {}, ValueError, "size: expected an integer >= 1, got 0"),
        ((4, 1.5), {}, TypeError, "dim: expected an integer, got float"),
        ((4, 4), {"temperature": 0}, ValueError, "temperature: expected a number above 0, got 0"),
        ((4, 4), {"negatives": "all"}, ValueError, "negatives: expected one of class, instance, got 'all'"),
    ],
)
def test_a_wrong_option_is_named(args, options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        ContrastMemory(*args, **options)
