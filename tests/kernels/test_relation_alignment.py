import pytest
import torch
from torch.testing import assert_close

import vifast
from vifast.kernels._registry import forced
from vifast.kernels.relation_alignment import relation_alignment
from vifast.testing import check_op, check_values, features


def pair(n, d, e=None, device="cpu"):
    student, _ = features(n, d, device=device)
    teacher, _ = features(n, e or d, device=device, seed=1)
    return student.requires_grad_(), teacher


def keep_of(n, device="cpu"):
    return torch.rand(n, generator=torch.Generator().manual_seed(n)).to(device)


@pytest.mark.parametrize("kept", [False, True])
def test_op(kept):
    check_op(
        relation_alignment,
        lambda n: (*pair(n, 7, 5), keep_of(n) if kept else None, 0.3, "exact"),
        length=9,
        outputs=1,
    )


@pytest.mark.parametrize(("n", "d", "e"), [(2, 5, 5), (33, 140, 300), (128, 12, 12), (129, 12, 12), (300, 12, 12)])
def test_values_on_every_back_end(backend, n, d, e):
    if backend.name == "triton" and n > 129:
        pytest.skip("slow in the interpreter")
    args = *pair(n, d, e, backend.device), keep_of(n, backend.device), 0.1, "exact"
    check_values(relation_alignment, args, length=max(n, d, e), outputs=1)


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_rows_of_any_length_and_close_rows(backend, shift):
    """Cosines see neither the lengths, here 0.001 to 1000, nor (but for the first row) the shift that they share."""
    student, teacher = (x.detach() + shift for x in pair(20, 24, device=backend.device))
    student *= torch.logspace(-3, 3, 20, device=backend.device).unsqueeze(1)
    student[3] = 7 * student[2]
    student[5] = (student[4] * (1 + 1e-3 * teacher[5])).clone()
    args = student.requires_grad_(), teacher, None, 0.1, "exact"
    oracle_args = *(x.detach().double() for x in args[:2]), *args[2:]
    oracle_args[0].requires_grad_()
    ours, oracle = relation_alignment(*args)[0], relation_alignment.definition(*oracle_args)[0]
    assert_close(ours.double(), oracle, rtol=1e-5, atol=1e-7)
    (grad,), (wanted,) = torch.autograd.grad(ours, args[0]), torch.autograd.grad(oracle, oracle_args[0])
    length = student.detach().double().norm(dim=1, keepdim=True)  # a gradient falls as its row grows
    assert_close(grad * length, wanted * length, rtol=1e-3, atol=1e-6, check_dtype=False)


def test_zero_rows(backend):
    student, teacher = pair(20, 24, device=backend.device)
    student.detach()[[3, 7]] = 0.0
    teacher[4] = 0.0
    args = student, teacher, keep_of(20, backend.device), 0.5, "exact"
    check_values(relation_alignment, args, length=24, outputs=1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64, torch.bfloat16])
def test_keep_of_any_type_and_stride(backend, dtype):
    student, teacher = pair(12, 5, device=backend.device)
    keep = torch.tensor([1, 0, 0, 1, 1, 0] * 4, device=backend.device)
    wanted = relation_alignment(student, teacher, keep[::2].float(), 0.1, "exact")[0]
    ours = relation_alignment(student, teacher, keep.to(dtype)[::2], 0.1, "exact")[0]
    assert torch.equal(ours, wanted)


def test_a_kernel_goes_on_where_the_definition_began(backend):
    student, teacher = pair(12, 5, device=backend.device)
    args = student, teacher, keep_of(12, backend.device), 0.1, "exact"
    (wanted,) = torch.autograd.grad(relation_alignment(*args)[0], student)
    with vifast.use_reference():
        loss = relation_alignment(*args)[0]
    assert_close(torch.autograd.grad(loss, student)[0], wanted)
    loss = relation_alignment(*args)[0]
    with forced("definition"):
        assert_close(torch.autograd.grad(loss, student)[0], wanted)


def test_a_keep_that_does_not_fit_is_named():
    args = *(x.to("meta") for x in pair(6, 4)), torch.ones(5, device="meta"), 0.1, "exact"
    with pytest.raises(ValueError, match=r"relation_alignment: expected one keep per row, got \[5\]"):
        relation_alignment(*args)
