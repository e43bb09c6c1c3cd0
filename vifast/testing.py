"""What tests and benchmarks share: inputs, tolerances, comparison with the float64 definition. Nothing else imports it.

A value is right when it is near the *oracle*, the op's definition evaluated in float64. How near is a table by the
dtype of the result, never by the test. ``L`` is the length of the reduction, ``s`` the largest magnitude expected.

    float64             rtol 1e-12   atol 1e-12 * sqrt(L) * s
    float32             rtol 1e-5    atol 1e-6 * sqrt(L) * s
    bfloat16, float16   error at most twice that of eager PyTorch in the same dtype, and one rounding
    integers            equal
"""

from collections import Counter
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from vifast.kernels._registry import Op

HALF = (torch.bfloat16, torch.float16)


def tolerance(dtype: torch.dtype, length: int, largest: float = 1.0) -> dict[str, float]:
    """``rtol`` and ``atol`` for float32 and float64 results whose reductions have ``length`` terms."""
    if dtype == torch.float64:
        return {"rtol": 1e-12, "atol": 1e-12 * length**0.5 * largest}
    return {"rtol": 1e-5, "atol": 1e-6 * length**0.5 * largest}


def assert_close_to_oracle(actual: Tensor, oracle: Tensor, *, length: int, eager: Tensor | None = None) -> None:
    """``actual`` agrees with the float64 ``oracle`` as the table says; infinities and NaNs stand in the same places.

    ``eager`` is what plain PyTorch gives in a half dtype; by default the oracle rounded to it.
    """
    assert actual.shape == oracle.shape, f"expected shape {list(oracle.shape)}, got {list(actual.shape)}"
    actual, oracle = actual.detach().cpu(), oracle.detach().cpu()
    if not actual.is_floating_point():
        torch.testing.assert_close(actual, oracle, rtol=0, atol=0)
        return
    finite = oracle[oracle.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    if actual.dtype not in HALF:
        bounds = tolerance(actual.dtype, length, largest)
        torch.testing.assert_close(actual.double(), oracle.double(), equal_nan=True, **bounds)
        return
    eager = oracle.to(actual.dtype) if eager is None else eager.detach().cpu()
    worst = (eager.double() - oracle)[oracle.isfinite()].abs().max().item() if finite.numel() else 0.0
    allowed = 2 * worst + torch.finfo(actual.dtype).eps * largest
    torch.testing.assert_close(actual.double(), oracle.double(), rtol=0, atol=allowed, equal_nan=True)


def features(
    n: int,
    d: int,
    *,
    num_instances: int = 4,
    offset: float = 0.0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """``feat [n, d]`` and shuffled ``labels [n]``: identities of ``num_instances`` rows around a center of their own.

    ``offset`` is added to every entry. Products of such rows cancel where a direct difference does not.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) // num_instances
    labels = labels[torch.randperm(n, generator=generator)]
    centers = torch.randn(n // num_instances + 1, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    feat = scale * (centers[labels] + 0.7 * noise) + offset
    return feat.to(device, dtype), labels.to(device)


def near_duplicates(feat: Tensor, gap: float, *, every: int = 3, seed: int = 0) -> Tensor:
    """``feat`` with every ``every``-th row replaced by its predecessor moved by ``gap``; 0 makes exact copies."""
    generator = torch.Generator().manual_seed(seed)
    out = feat.clone()
    step = torch.randn(feat.shape, generator=generator).to(feat)
    step = gap * step / step.norm(dim=1, keepdim=True).clamp(min=1e-30)
    out[1::every] = feat[: len(out[1::every]) * every : every] + step[1::every]
    return out


LAYOUTS = ("contiguous", "transposed", "sliced", "strided")


def with_layout(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` in other strides: column-major, columns of a wider tensor, or every second row and column."""
    n, d = x.shape
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "sliced":
        return x.new_full((n, d + 3), torch.nan)[:, 2 : 2 + d].copy_(x)
    if layout == "strided":
        return x.new_full((2 * n, 2 * d), torch.nan)[::2, ::2].copy_(x)
    return x.contiguous()


MAP_LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed")


def feature_map(
    n: int,
    c: int,
    h: int,
    w: int,
    *,
    low: float = -0.5,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Tensor:
    """``[n, c, h, w]`` around 0.3, at least ``low``; none so near 0 that rounding moves it over a pool's clamp."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64) * 0.7 + 0.3
    x = x.clamp(min=low)
    return torch.where(x.abs() < 0.01, 0.02, x).to(device, dtype)


def with_map_layout(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` in other strides: channels fastest, part of a wider map, or height and width exchanged."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        n, c, h, w = x.shape
        return x.new_full((n, c + 1, h, w + 2), torch.nan)[:, 1:, :, 1:-1].copy_(x)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x.contiguous()


def to_float64(args: tuple) -> tuple:
    """The arguments of an op with every floating tensor in float64, detached: what the oracle is given."""
    return tuple(a.detach().double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def check_values(op, args: tuple, *, length: int, outputs: int) -> None:
    """The first ``outputs`` results and the gradients of one call agree with the definition in float64.

    Gradients are those of tensors that require grad, for a fixed random weighting of the finite results; the oracle's
    come from PyTorch's autograd through the definition, so the op's own backward is not trusted.
    """
    actual, grads = _forward_backward(op, args, outputs)
    oracle, oracle_grads = _forward_backward(op.definition, to_float64(args), outputs, like=args)
    for ours, theirs in zip((*actual, *grads), (*oracle, *oracle_grads), strict=True):
        assert_close_to_oracle(ours, theirs, length=length)


def check_op(op, make_args, *, length: int, outputs: int, sizes: tuple[int, int] = (6, 9)) -> None:
    """Everything an op owes, in one call: values and gradients, registration, and ``torch.compile`` as one graph.

    Args:
        op: of ``vifast.kernels``.
        make_args: the op's arguments for a batch of n rows.
        length: of the longest reduction, for the tolerance.
        outputs: how many of the op's results are part of its contract; the rest are saved for its backward.
        sizes: two batch sizes. Both go through one compiled function.
    """
    torch.compiler.reset()
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    for n in sizes:
        args = make_args(n)
        check_values(op, args, length=length, outputs=outputs)
        torch.library.opcheck(op.overload, args)
        eager, again = _forward_backward(op, args, outputs), _forward_backward(compiled, args, outputs)
        for first, second in zip((*eager[0], *eager[1]), (*again[0], *again[1]), strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def _forward_backward(function, args: tuple, outputs: int, like: tuple | None = None):
    """Results and gradients; ``like`` says which tensors require grad where ``args`` are copies of others."""
    wanted = [isinstance(a, Tensor) and a.requires_grad for a in like or args]
    args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
    leaves = [a.requires_grad_() for a, want in zip(args, wanted, strict=True) if want]
    results = function(*args)
    results = results[:outputs] if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for out in results:
        if out.requires_grad:
            weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
            total = total + (weight * out.masked_fill(~out.detach().isfinite(), 0.0)).sum()
    grads = torch.autograd.grad(total, leaves) if leaves else ()
    return tuple(out.detach() for out in results), grads


class Launches(TorchDispatchMode):
    """Counts what a card would be asked to run, by name, where the Triton launchers run in the interpreter.

    A launch of a kernel of ours counts once, and so does every op of PyTorch beside them that makes a tensor, though
    some launch more. Views and allocations launch nothing.
    """

    def __init__(self):
        super().__init__()
        self.count, self.nested = Counter(), 0

    @property
    def total(self) -> int:
        return sum(self.count.values())

    def __enter__(self):
        from triton.runtime.interpreter import GridExecutor

        run = GridExecutor.__call__

        def launch(executor, *args, **kwargs):
            self.count[f"{executor.fn.__module__.split('.')[-1]}.{executor.fn.__name__}"] += 1
            with _disable_current_modes():  # the interpreter copies tensors of its own
                return run(executor, *args, **kwargs)

        if self.nested == 0:
            self.patch = mock.patch.object(GridExecutor, "__call__", launch)
            self.patch.start()
        self.nested += 1
        return super().__enter__()

    def __exit__(self, *error):
        self.nested -= 1
        if self.nested == 0:
            self.patch.stop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, returns = func._schema.name, func._schema.returns
        if name.startswith("vifast::"):
            op = next(op for op in Op.registered if op.overload is func)
            with self:  # a mode is off while it answers, and the op's own calls are what counts
                return op.run(*args)
        makes = any(r.alias_info is None or r.alias_info.is_write for r in returns if "Tensor" in str(r.type))
        if makes and "empty" not in name:
            self.count[name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))
