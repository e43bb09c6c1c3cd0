"""class_logits: similarities of two modalities' rows to the prototypes of their own."""

import pytest
import torch
from torch.testing import assert_close

from vifast.kernels.class_logits import class_logits
from vifast.testing import check_op, check_values


def rows(n, d, k, **options):
    student, teacher = torch.randn(2, n, d, **options)
    return student.requires_grad_(), teacher, *torch.randn(2, k, d, **options)


def test_rows_meet_the_prototypes_of_their_modality():
    student, teacher, to_v, to_i = rows(5, 3, 4)
    ours = class_logits(student, teacher, to_v, to_i, 2, 0.5)
    for actual, x in zip(ours, (student, teacher), strict=True):
        assert_close(actual, 2 * torch.stack([(to_v if i < 2 else to_i) @ row for i, row in enumerate(x)]))
    assert not ours[1].requires_grad


@pytest.mark.parametrize("first", [0, 2])
def test_op(first):
    check_op(class_logits, lambda n: (*rows(n, 13, 5), first, 0.05), length=13, outputs=2)


@pytest.mark.parametrize(("n", "d", "k", "first"), [(64, 2048, 395, 32), (3, 700, 1, 1), (0, 4, 2, 0), (2, 5, 0, 1)])
def test_values(n, d, k, first):
    check_values(class_logits, (*rows(n, d, k), first, 0.05), length=max(d, k), outputs=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    student, teacher, to_v, to_i = rows(4, 6, 3, dtype=dtype)
    logits, _ = class_logits(student, teacher, to_v, to_i, 2, 0.5)
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    (grad,) = torch.autograd.grad(logits.sum(), student)
    assert grad.dtype == dtype


def test_bits_do_not_depend_on_threads(with_threads):
    args = (*rows(64, 1030, 395), 32, 0.05)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        logits, _ = class_logits(*args)
        results.append((logits, *torch.autograd.grad(logits.square().sum(), args[0])))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
