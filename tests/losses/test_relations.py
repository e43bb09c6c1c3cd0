"""The relational terms, against loops over rows in float64."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from vifast.losses import relations

ROWS = ("rkd_distance", "rkd_angle", "similarity_preserving")
WEIGHTED = ("channel_correlation", "batch_gram", "class_gram")


def pair(n=6, d=5, seed=0, dtype=torch.float64):
    student, teacher = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def huber(gap):
    return 0.5 * gap**2 if abs(gap) < 1 else abs(gap) - 0.5


def loop_distance(student, teacher):
    n, relative = len(student), []
    for x in (student, teacher):
        dist = [[math.dist(x[i], x[j]) for j in range(n)] for i in range(n)]
        mean = sum(map(sum, dist)) / (n * (n - 1))
        relative.append([[d / mean for d in row] for row in dist])
    return [sum(huber(a - b) for a, b in zip(*rows, strict=True)) / (n - 1) for rows in zip(*relative, strict=True)]


def loop_angle(student, teacher):
    n = len(student)

    def cosine(x, i, j, k):
        a, b = normalize(x[j] - x[i], dim=0), normalize(x[k] - x[i], dim=0)
        return (a @ b).item()

    rows = []
    for i in range(n):
        triples = [(i, j, k) for j in range(n) for k in range(n) if len({i, j, k}) == 3]
        rows.append(sum(huber(cosine(student, *t) - cosine(teacher, *t)) for t in triples) / len(triples))
    return rows


def loop_similarity(student, teacher):
    own, wanted = (normalize(x @ x.T) for x in (student, teacher))
    return [((a - b) ** 2).sum().item() / len(own) for a, b in zip(own, wanted, strict=True)]


LOOPS = dict(zip(ROWS, (loop_distance, loop_angle, loop_similarity), strict=True))


def direct_channels(student, teacher, weight):
    def correlation(x):
        covariance = (x.T * weight) @ x
        length = covariance.diagonal().sqrt()
        return covariance / length.outer(length)

    return (correlation(student) - correlation(teacher)).square().mean()


def direct_batch(student, teacher, weight):
    gap = (student @ student.T - teacher @ teacher.T).square()
    return sum(weight[i] * weight[j] * gap[i, j] for i in range(len(gap)) for j in range(len(gap))) / len(gap)


def direct_class(student, teacher, weight):
    return ((student.T * weight) @ student - (teacher.T * weight) @ teacher).square().sum() / student.size(1)


DIRECT = dict(zip(WEIGHTED, (direct_channels, direct_batch, direct_class), strict=True))


def of(name, student, teacher):
    """The term, its rows weighted unevenly where it takes weights."""
    if name in ROWS:
        return getattr(relations, name)(student, teacher)
    return getattr(relations, name)(student, teacher, torch.linspace(0, 2, len(student)))


every_term = pytest.mark.parametrize("name", ROWS + WEIGHTED)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("n", [3, 4, 7])
def test_rows_by_loops(name, n):
    student, teacher = pair(n, seed=n)
    wanted = torch.tensor(LOOPS[name](student.detach(), teacher), dtype=torch.float64)
    assert_close(of(name, student, teacher), wanted)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_terms_directly(name):
    student, teacher = pair(7)
    weight = torch.linspace(0, 2, 7).double()
    assert_close(of(name, student, teacher), DIRECT[name](student, teacher, weight))
    ours, theirs = (
        torch.autograd.grad(f(student, teacher, weight), student)[0] for f in (getattr(relations, name), DIRECT[name])
    )
    assert_close(ours, theirs)


@every_term
def test_gradients(name):
    student, teacher = pair(5)
    torch.autograd.gradcheck(lambda x: of(name, x, teacher), student)


@every_term
def test_an_equal_student_has_no_loss_and_no_gradient(name):
    _, teacher = pair()
    student = teacher.clone().requires_grad_()
    value = of(name, student, teacher)
    assert torch.equal(value, torch.zeros_like(value))
    (grad,) = torch.autograd.grad(value.sum(), student)
    assert torch.equal(grad, torch.zeros_like(grad))


@every_term
def test_agreement_keeps_its_digits_in_float32(name):
    _, teacher = pair(dtype=torch.float32)
    student = teacher + 1e-4 * torch.randn(teacher.shape, generator=torch.Generator().manual_seed(3))
    assert_close(of(name, student, teacher), of(name, student.double(), teacher.double()).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [*ROWS, "channel_correlation"])
def test_scale_does_not_matter(name):
    student, teacher = pair()
    assert_close(of(name, 30 * student, 0.2 * teacher), of(name, student, teacher))
    if name.startswith("rkd"):
        assert_close(of(name, student + 3, teacher - 1), of(name, student, teacher))


def test_the_scale_of_a_channel_does_not_matter():
    student, teacher = pair()
    factor = torch.arange(1.0, 6.0)
    assert_close(of("channel_correlation", student * factor, teacher), of("channel_correlation", student, teacher))


@every_term
@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_rows(name, n):
    student, teacher = pair(n)
    value = of(name, student, teacher)
    (grad,) = torch.autograd.grad(value.sum(), student)
    assert value.isfinite().all()
    assert grad.isfinite().all()


@every_term
def test_duplicates_and_zeros_have_finite_gradients(name):
    student, teacher = pair(6, dtype=torch.float32)
    for rows in (torch.zeros_like(student), student[:1].expand(6, 5), torch.cat((student[:3], student[:3]))):
        leaf = rows.detach().clone().requires_grad_()
        value = of(name, leaf, teacher)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        assert value.isfinite().all()
        assert grad.isfinite().all()
        assert grad.abs().max() < 1e3


def test_angles_in_slabs(monkeypatch):
    student, teacher = pair(9)
    whole = of("rkd_angle", student, teacher)
    (grad,) = torch.autograd.grad(whole.sum(), student)
    monkeypatch.setattr(relations, "SLAB", 2 * 81)
    slabs = of("rkd_angle", student, teacher)
    assert_close(slabs, whole)
    assert_close(torch.autograd.grad(slabs.sum(), student)[0], grad)


def kept_entries(n):
    student, teacher = pair(n, 4)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        of("rkd_angle", student, teacher)
    return sum(t.numel() for t in kept.values())


def test_angles_keep_squares(monkeypatch):
    monkeypatch.setattr(relations, "SLAB", 1)
    assert kept_entries(32) < 20 * 32**2


@every_term
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_autocast(name, dtype):
    student, teacher = pair(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value = of(name, student, teacher)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(value, of(name, student, teacher))
    assert torch.autograd.grad(value.sum(), student)[0].dtype == dtype


@every_term
def test_one_graph(name, monkeypatch):
    monkeypatch.setattr(relations, "SLAB", 2 * 36)
    student, teacher = pair(dtype=torch.float32)
    compiled = torch.compile(of, backend="aot_eager", fullgraph=True)
    eager, traced = of(name, student, teacher), compiled(name, student, teacher)
    assert_close(eager, traced)
    assert_close(*(torch.autograd.grad(v.sum(), student)[0] for v in (eager, traced)))
