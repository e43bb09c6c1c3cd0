import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.class_centers import class_centers, dense_codes, row_centers
from vifast.testing import LAYOUTS, assert_close_to_oracle, check_op, check_values, features, with_layout


def test_small_table(backend):
    feat = torch.tensor([[1.0, 2.0], [3.0, 6.0], [8.0, 8.0], [9.0, 9.0], [5.0, 5.0]], device=backend.device)
    labels = torch.tensor([2, 2, 0, -1, 4], device=backend.device)
    centers, counts = F.class_centers(feat, labels, 4)
    assert centers.tolist() == [[8, 8], [0, 0], [2, 4], [0, 0]]
    assert counts.tolist() == [1, 0, 2, 0]
    assert (centers.dtype, counts.dtype) == (torch.float32, torch.int64)
    beside, counts = row_centers(feat, labels)
    assert beside.tolist() == [[2, 4], [2, 4], [8, 8], [9, 9], [5, 5]]
    assert counts.tolist() == [2, 2, 1, 1, 1]


def test_rows_outside_get_no_gradient(backend):
    feat = torch.ones(5, 3, device=backend.device)
    feat[0], feat[4] = torch.nan, torch.inf
    feat.requires_grad_()
    centers, _ = F.class_centers(feat, torch.tensor([-1, 0, 0, 1, 2**40], device=backend.device), 2)
    assert centers.tolist() == [[1] * 3, [1] * 3]
    centers.sum().backward()
    assert_close(feat.grad.cpu(), torch.tensor([0, 0.5, 0.5, 1, 0]).unsqueeze(1).expand(5, 3))


def test_a_bad_row_spoils_its_own_class_alone(backend):
    feat = torch.ones(4, 2, device=backend.device)
    feat[1, 0] = torch.nan
    centers, _ = F.class_centers(feat, torch.tensor([0, 1, 1, 2], device=backend.device), 3)
    assert centers.isnan().tolist() == [[False, False], [True, False], [False, False]]


@pytest.mark.parametrize("op", [lambda x, y: (x, y, 4), lambda x, y: (x, y)], ids=["class", "row"])
def test_op(op):
    def make_args(n):
        feat, labels = features(n, 7, num_instances=2)
        return op(feat.requires_grad_(), labels)

    check_op(class_centers if len(make_args(1)) == 3 else row_centers, make_args, length=9, outputs=2)


@pytest.mark.parametrize(("n", "d", "k"), [(0, 3, 2), (1, 1, 1), (5, 3, 0), (100, 70, 13), (700, 33, 100)])
def test_values_on_every_back_end(backend, n, d, k):
    feat, labels = features(n, d, device=backend.device)
    check_values(class_centers, (feat.requires_grad_(), labels, k), length=max(n, 1), outputs=2)
    check_values(row_centers, (feat, labels * 2**40 - 7), length=max(n, 1), outputs=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_types_and_strides(backend, dtype, layout):
    feat, labels = features(30, 17, dtype=dtype, device=backend.device)
    x = with_layout(feat, layout).requires_grad_()
    centers, counts = F.class_centers(x, labels.to(torch.int16), 8)
    oracle, _ = F.class_centers(feat.double(), labels, 8)
    assert centers.dtype == torch.promote_types(dtype, torch.float32)
    assert_close_to_oracle(centers, oracle, length=30)
    centers.sum().backward()
    wanted = (1 / counts.clamp(min=1))[labels].to(dtype).unsqueeze(1).expand_as(x.grad)
    assert_close(x.grad, wanted)


def test_bits_do_not_depend_on_threads(with_threads):
    feat, labels = features(900, 700, num_instances=9)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        results.append((*F.class_centers(feat, labels, 100), *row_centers(feat, labels)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_every_instruction_set(isa):
    feat, labels = features(60, 300)
    check_values(class_centers, (feat.requires_grad_(), labels, 9), length=60, outputs=2)


def test_gradcheck():
    feat, labels = features(9, 4, num_instances=3, dtype=torch.float64)
    feat.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.class_centers(x, labels, 2)[0], feat)
    assert torch.autograd.gradcheck(lambda x: row_centers(x, labels)[0], feat)


def test_dense_codes():
    labels = torch.tensor([5, -(2**62), 5, 2**62, 0])
    assert dense_codes(labels).tolist() == [2, 0, 2, 3, 1]
    assert dense_codes(labels[:0]).tolist() == []
