import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vifast.kernels.prompt_mixture import prompt_mixture, prompt_mixture_backward
from vifast.kernels.prompt_statistics import prompt_statistics
from vifast.testing import assert_close_to_oracle, check_op, check_values

BOTH, EVAL, OWN = (True, True), (False, False), (False, True)


def buffers(specific=3, common=2, device="cpu"):
    """Running mean and variance of visible, infrared and common columns, and how many batches there were."""
    generator = torch.Generator().manual_seed(3)
    out = []
    for width, tracked in ((specific, 5), (specific, 7), (common, None)):
        if width == 0:
            out += [None] * (2 if tracked is None else 3)
            continue
        out += [torch.randn(width, generator=generator).to(device), torch.rand(width, generator=generator).to(device)]
        out += [] if tracked is None else [torch.tensor(tracked, device=device)]
    return out


def arguments(n, specific=3, common=2, cells=6, gate=2, dtype=torch.float32, device="cpu", options=BOTH, modality=None):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()

    hidden, packed = drawn(n, specific + common, cells), 2 * specific + common
    modality = (torch.arange(n, device=device) + 1) % 2 if modality is None else torch.tensor(modality, device=device)
    moved = [
        x.double() if dtype == torch.float64 and x is not None and x.dim() else x
        for x in buffers(specific, common, device)
    ]
    statistics = prompt_statistics(hidden.detach(), modality, *moved, *options, 1e-5, 0.1)
    gates = [None] * 4 if common == 0 else [drawn(*s) for s in 2 * ((gate, common), (common, gate))]
    return hidden, modality, *statistics, drawn(packed), drawn(packed), *gates, *options


@pytest.mark.parametrize("modality", [[0, 1, 1, 0, 1], [1] * 5, [0] * 5])
def test_statistics_are_those_of_torch(backend, modality):
    hidden = 3 * torch.randn(5, 5, 6, device=backend.device) + 2
    running, labels = buffers(device=backend.device), torch.tensor(modality, device=backend.device)
    norms = [nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.InstanceNorm2d(2, track_running_stats=True)]
    for k, norm in enumerate(norms):
        norm.to(backend.device)
        norm.running_mean.copy_(running[3 * k])
        norm.running_var.copy_(running[3 * k + 1])
        if k < 2:
            norm.num_batches_tracked.copy_(running[3 * k + 2])
    wanted = torch.empty_like(hidden)
    for m, norm in enumerate(norms[:2]):
        rows = hidden[labels == m, :3].transpose(1, 2)
        if len(rows):
            wanted[labels == m, :3] = norm(rows.flatten(0, 1)).view_as(rows).transpose(1, 2)
    wanted[:, 3:] = norms[2](hidden[:, 3:, None]).squeeze(2)
    mean, rstd = prompt_statistics(hidden, labels, *running, *BOTH, 1e-5, 0.1)
    assert_close((hidden - mean[..., None]) * rstd[..., None], wanted, rtol=1e-4, atol=1e-5)
    moved = [b for norm in norms[:2] for b in norm.buffers()] + [norms[2].running_mean, norms[2].running_var]
    for one, two in zip(running, moved, strict=True):
        assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [EVAL, OWN])
@pytest.mark.parametrize(("specific", "common"), [(3, 2), (0, 4), (5, 0)])
def test_in_evaluation_nothing_moves(backend, options, specific, common):
    running = buffers(specific, common, backend.device)
    before = copy.deepcopy(running)
    hidden = torch.randn(4, specific + common, 6, device=backend.device)
    modality = torch.tensor([0, 1, 1, 0], device=backend.device)
    args = hidden, modality
    out = prompt_statistics(*args, *running, *options, 1e-5, 0.1)
    wanted = prompt_statistics.definition(hidden.double(), modality, *before, *options, 1e-5, 0.1)
    for one, two in zip(out, wanted, strict=True):
        assert_close_to_oracle(one, two, length=24)
    for one, two in zip(running, before, strict=True):
        assert one is two is None or torch.equal(one, two)


def test_the_buffers_may_be_of_half_precision(backend):
    running = [x if x.dtype == torch.int64 else x.bfloat16() for x in buffers(device=backend.device)]
    hidden, modality = torch.randn(4, 5, 6, device=backend.device), torch.tensor([0, 1, 1, 0], device=backend.device)
    wanted = [x if x.dtype == torch.int64 else x.float() for x in running]
    prompt_statistics(hidden, modality, *running, *BOTH, 1e-5, 0.1)
    prompt_statistics.definition(hidden, modality, *wanted, *BOTH, 1e-5, 0.1)
    for one, two in zip(running, wanted, strict=True):
        assert_close(one.float(), two.float(), rtol=1e-2, atol=1e-2)


def test_a_far_mean_costs_no_digits(backend):
    hidden = torch.randn(4, 5, 64, dtype=torch.float64) + 1000
    args = torch.tensor([0, 1, 1, 0], device=backend.device), *buffers(device=backend.device), *BOTH, 1e-5, 0.1
    _, rstd = prompt_statistics(hidden.float().to(backend.device), *args)
    _, oracle = prompt_statistics.definition(hidden.float().double().to(backend.device), *args)
    assert_close(rstd.double(), oracle, rtol=1e-4, atol=0)


def test_op():
    check_op(prompt_mixture, arguments, length=36, outputs=1)
    given = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments(3)]
    torch.library.opcheck(prompt_mixture_backward.overload, (torch.randn_like(given[0]), *given))
    moved = (given[0], given[1], *buffers(), *BOTH, 1e-5, 0.1)
    torch.library.opcheck(prompt_statistics.overload, moved)


@pytest.mark.parametrize("options", [BOTH, EVAL, OWN])
def test_gradcheck(options):
    hidden, modality, _, _, *rest = arguments(4, dtype=torch.float64, options=options)
    weights, options = rest[:-2], rest[-2:]

    def mixture(hidden, *weights):
        moved = [x.double() if x.dim() else x for x in buffers()]
        statistics = prompt_statistics(hidden.detach(), modality, *moved, *options, 1e-5, 0.1)
        return prompt_mixture(hidden, modality, *statistics, *weights, *options)

    torch.autograd.gradcheck(mixture, (hidden, *weights), fast_mode=True)


@pytest.mark.parametrize("options", [BOTH, EVAL, OWN])
@pytest.mark.parametrize(
    ("n", "specific", "common", "cells", "gate"),
    [(6, 16, 8, 128, 2), (1, 3, 2, 2, 1), (5, 0, 5, 33, 3), (4, 17, 0, 19, 2), (3, 1, 9, 150, 4)],
)
def test_values_on_every_back_end(backend, options, n, specific, common, cells, gate):
    args = arguments(n, specific, common, cells, gate, device=backend.device, options=options)
    check_values(prompt_mixture, args, length=n * cells, outputs=1)


def test_one_modality_alone(backend):
    args = arguments(4, device=backend.device, modality=[1] * 4)
    check_values(prompt_mixture, args, length=24, outputs=1)
    to_weight = torch.autograd.grad(prompt_mixture(*args).square().sum(), args[4])[0]
    assert to_weight[:3].eq(0).all()


def test_a_nan_stays_in_its_modality(backend):
    hidden, modality, *_ = arguments(4, device=backend.device)
    hidden = hidden.detach().clone()
    hidden[0] = torch.nan
    running = buffers(device=backend.device)
    mean, rstd = prompt_statistics(hidden, modality, *running, *BOTH, 1e-5, 0.1)
    assert mean[modality == 0].isfinite().all()
    assert rstd[modality == 0].isfinite().all()
    assert mean[0].isnan().all()
    assert mean[2, 3:].isfinite().all()
    assert running[0].isfinite().all()
    assert running[4].isnan().all()


def test_bits_do_not_depend_on_threads(with_threads):
    args = arguments(33, 16, 8, 128)
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    results = []
    for threads in (1, 2):
        with_threads(threads)
        statistics = prompt_statistics(args[0].detach(), args[1], *buffers(16, 8), *BOTH, 1e-5, 0.1)
        out = prompt_mixture(*args)
        results.append((*statistics, out, *torch.autograd.grad(out.square().sum(), leaves)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_every_instruction_set(isa):
    check_values(prompt_mixture, arguments(5, 16, 8, 40), length=200, outputs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: torch.zeros(2, dtype=torch.int64)}, r"\[2\]"),
        ({2: torch.zeros(3, 4)}, r"\[3, 4\]"),
        ({4: torch.zeros(4)}, r"\[4\]"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_that_do_not_fit_are_named(change, message, device):
    args = [change.get(k, a) for k, a in enumerate(arguments(3))]
    args = [a.detach().to(device) if isinstance(a, torch.Tensor) else a for a in args]
    with pytest.raises(ValueError, match=f"^prompt_mixture: expected .* got .*{message}"):
        prompt_mixture(*args)


def test_statistics_of_other_shapes_are_named():
    with pytest.raises(
        ValueError, match=r"^prompt_statistics: expected \[B, 5, G\] and \[B\], got \[3, 4, 6\] and \[3\]"
    ):
        prompt_statistics(torch.zeros(3, 4, 6), torch.zeros(3, dtype=torch.int64), *buffers(), *BOTH, 1e-5, 0.1)
