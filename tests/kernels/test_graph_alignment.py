from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import vifast
from vifast import functional as F
from vifast.kernels.graph_alignment import graph_alignment
from vifast.testing import assert_close_to_oracle, check_op, check_values, features

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_graph.npz"
DISTANCE = (None, 1e-6, False, True, "exact", "none", 1.0)
TARGET = (None, 1e-6, False, False, "exact", "mean", 1.0)
RELATION = (-0.5, 0.0, False, False, "exact", "none", 0.3)
AFFINITY = (-0.05, 0.0, True, False, "exact", "sum", 0.7)
OPTIONS = {"distance": DISTANCE, "target": TARGET, "relation": RELATION, "affinity": AFFINITY}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def graph(feat, floor=1e-6):
    """Gamma of spec idkl 5, as written: the matrix, clamped, its diagonal cut out."""
    sq = (feat[:, None] - feat).square().sum(-1)
    off = ~torch.eye(len(feat), dtype=torch.bool)
    return sq[off].view(len(feat), -1).clamp(min=floor).sqrt()


def row_kl(source, target):
    """KL-bar(source -> target) of spec idkl 5, unreduced."""
    log_s, log_t = source.log_softmax(1), target.log_softmax(1)
    return (log_t.exp() * (log_t - log_s)).sum(1)


def pair(n, d, e=None, device="cpu"):
    """Two feature sets of the same samples, the second a disturbed copy where widths agree."""
    a, _ = features(n, d, device=device)
    b, _ = features(n, e or d, device=device, seed=1)
    return a, (b if e else a + 0.3 * b)


def test_three_points_done_by_hand(backend):
    a = torch.tensor([[0.0], [log(2)], [log(4)]], device=backend.device)
    b = torch.zeros(3, 1, device=backend.device)
    loss = F.graph_alignment(a, b, symmetric=False, reduction="none")
    # Rows of distances (ln 2, ln 4), (ln 2, ln 2), (ln 4, ln 2) against equal ones: weights 1/3 and 2/3 against 1/2.
    uneven = -0.5 * log(4 * 2 / 9)
    assert_close(loss.cpu(), torch.tensor([uneven, 0.0, uneven]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", "ab")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(case, dtype, backend):
    with np.load(GOLDEN) as golden:
        f, g, align, grad_f, grad_g = (
            torch.from_numpy(golden[f"{case}__{name}"]) for name in ("f", "g", "align", "grad_f", "grad_g")
        )
    a, b = (x.to(backend.device, dtype).requires_grad_() for x in (f, g))
    loss = F.graph_alignment(a, b)
    loss.backward()
    for ours, wanted in ((loss, align), (a.grad, grad_f), (b.grad, grad_g)):
        if dtype == torch.float64:
            assert_close(ours.cpu(), wanted, rtol=1e-9, atol=1e-12)
        else:
            assert_close_to_oracle(ours, wanted, length=60)


@pytest.mark.parametrize("symmetric", [False, True])
def test_formula_and_gradient_of_both_sides(symmetric):
    a, b = (x.double().requires_grad_() for x in pair(9, 4, 6))
    ours = F.graph_alignment(a, b, symmetric=symmetric, reduction="none")
    wanted = row_kl(graph(a), graph(b)) + (row_kl(graph(b), graph(a)) if symmetric else 0)
    assert_close(ours, wanted, rtol=1e-12, atol=0)
    weight = torch.randn(9, dtype=torch.float64)
    grads = (torch.autograd.grad((weight * loss).sum(), (a, b)) for loss in (ours, wanted))
    for one, other in zip(*grads, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-12)
    for target in (a, b):  # the target of one direction is the source of the other
        assert_close(F.graph_alignment(target, target.detach()).item(), 0.0, rtol=0, atol=1e-15)


@every_option
def test_op(options):
    def make_args(n):
        a, b = pair(n, 7, 5)
        return a.requires_grad_(), b.requires_grad_(), *options

    check_op(graph_alignment, make_args, length=9, outputs=1)


@every_option
@pytest.mark.parametrize("n", [2, 33, 128, 129, 300])
def test_values_on_every_back_end(backend, options, n):
    if backend.name == "triton" and n > 128:
        pytest.skip("slow in the interpreter")
    a, b = pair(n, 12, device=backend.device)
    check_values(graph_alignment, (a.requires_grad_(), b.requires_grad_(), *options), length=n, outputs=1)


@pytest.mark.slow
@every_option
def test_several_tiles(options):
    a, b = pair(700, 6)
    check_values(graph_alignment, (a.requires_grad_(), b.requires_grad_(), *options), length=700, outputs=1)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("n", [12, 300])
def test_gradient_of_one_side_alone(backend, side, n):
    if backend.name == "triton" and n > 12:
        pytest.skip("slow in the interpreter")
    both = tuple(x.requires_grad_() for x in pair(n, 5, device=backend.device))
    wanted = torch.autograd.grad(F.graph_alignment(*both), both)[side]
    rows = tuple(x if i == side else x.detach() for i, x in enumerate(both))
    assert torch.equal(torch.autograd.grad(F.graph_alignment(*rows), rows[side])[0], wanted)


def test_a_kernel_goes_on_where_the_definition_began():
    a, b = (x.requires_grad_() for x in pair(12, 5))
    wanted = torch.autograd.grad(F.graph_alignment(a, b), (a, b))
    with vifast.use_reference():
        loss = F.graph_alignment(a, b)
    for one, other in zip(torch.autograd.grad(loss, (a, b)), wanted, strict=True):
        assert_close(one, other)


def test_near_graphs_keep_their_digits(backend):
    """The loss falls with the square of the difference, its terms do not: float32 sums would leave nothing of it."""
    a, b = pair(40, 16, device=backend.device)
    for step in (1e-1, 1e-2, 1e-3):
        near = a + step * (b - a)
        loss, oracle = (F.graph_alignment(x.to(t), near.to(t), reduction="none") for x, t in
                        ((a, torch.float32), (a, torch.float64)))  # fmt: skip
        # Distances carry float32 roundings of eps * d; the divergence moves by its slope (about step) times that.
        assert_close(loss.double(), oracle, rtol=1e-4, atol=1e-5 * step)


def test_no_gradient_through_a_clamped_distance(backend):
    a = torch.tensor([[0.0, 0.0], [1e-4, 0.0], [2.0, 1.0]], device=backend.device, requires_grad=True)
    b = torch.tensor([[0.0], [1.0], [5.0]], device=backend.device)
    F.graph_alignment(a, b, symmetric=False, reduction="none")[:1].sum().backward()
    assert_close(a.grad[1], torch.zeros_like(a.grad[1]))  # its only path in row 0 is the clamped pair


def test_a_bad_row_makes_every_loss_nan(backend):
    a, b = pair(9, 4, device=backend.device)
    a[2] = torch.nan
    assert F.graph_alignment(a, b, reduction="none").isnan().all()
