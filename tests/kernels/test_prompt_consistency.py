import pytest
import torch
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.prompt_consistency import prompt_consistency, prompt_consistency_backward
from vifast.testing import assert_close_to_oracle, check_op, check_values


def pair(n, m=37, dtype=torch.float32, device="cpu"):
    new = torch.randn(n, m, dtype=dtype, device=device, requires_grad=True)
    return new, torch.randn(n, m, dtype=dtype, device=device)


def test_by_hand(backend):
    new = torch.tensor([1.0, 2.0, 3.0, -1.0], device=backend.device, requires_grad=True)
    old = torch.tensor([0.0, 5.0, 3.0, 1.0], device=backend.device, requires_grad=True)
    loss = F.prompt_consistency(new, old)
    loss.backward()
    assert loss.item() == 1.5
    assert new.grad.tolist() == [0.25, -0.25, 0, -0.25]
    assert old.grad is None


def test_op():
    check_op(prompt_consistency, pair, length=37, outputs=1)
    new, old = pair(3)
    torch.library.opcheck(prompt_consistency_backward.overload, (torch.tensor(2.0), new.detach(), old))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_values_on_every_back_end(backend, dtype, layout):
    new, old = (t.detach() for t in pair(130, 129, dtype, backend.device))
    if layout == "transposed":
        new = new.t().contiguous().t()
    elif layout == "strided":
        new, old = new[::2, ::3], old[::2, ::3]
    check_values(prompt_consistency, (new.requires_grad_(), old), length=new.numel(), outputs=1)


def test_dtypes_may_differ(backend):
    new, _ = pair(4, dtype=torch.bfloat16, device=backend.device)
    _, old = pair(4, device=backend.device)
    loss = F.prompt_consistency(new, old)
    loss.backward()
    assert_close_to_oracle(loss, (new.double() - old.double()).abs().mean(), length=148)
    assert new.grad.dtype == torch.bfloat16


def test_nothing_and_nan(backend):
    empty, _ = pair(0, device=backend.device)
    loss = F.prompt_consistency(empty, empty.detach())
    loss.backward()
    assert loss == 0
    new, old = (t.detach().clone() for t in pair(2, device=backend.device))
    new[0, 0] = torch.nan
    loss = F.prompt_consistency(new.requires_grad_(), old)
    loss.backward()
    assert loss.isnan()
    assert new.grad[1].isfinite().all()


def test_bits_do_not_depend_on_threads(with_threads):
    new, old = pair(500, 700)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        loss = F.prompt_consistency(new, old)
        results.append((loss, *torch.autograd.grad(loss, new)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


NEW = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (([0.0], NEW), TypeError, "prompts: expected a tensor, got list"),
        ((NEW, NEW.long()), TypeError, "teacher_prompts: expected a floating-point tensor, got torch.int64"),
        ((NEW, NEW[:1]), ValueError, r"teacher_prompts: expected shape \[2, 3\] as prompts, got \[1, 3\]"),
        ((NEW, NEW.to("meta")), ValueError, "teacher_prompts: expected device cpu as prompts, got meta"),
    ],
)
def test_a_wrong_argument_is_named(args, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        F.prompt_consistency(*args)


def test_the_op_checks_shapes_under_the_compiler_too():
    with pytest.raises(ValueError, match=r"prompt_consistency: expected equal shapes, got \[2, 3\] and \[1, 3\]"):
        prompt_consistency.overload(NEW.to("meta"), NEW[:1].to("meta"))


def test_random_pairs_agree_with_l1():
    new, old = pair(9)
    assert_close(F.prompt_consistency(new, old), torch.nn.functional.l1_loss(new, old))
