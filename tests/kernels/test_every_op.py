"""What every op promises, whatever it computes: shapes, dtypes, strides, labels, threads, bad values."""

import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from vifast import functional as F
from vifast.kernels.purifier import instance_stats, purifier
from vifast.testing import LAYOUTS, assert_close_to_oracle, features, near_duplicates, with_layout


def widened(x):
    """More columns: a standardised row of two is a sign, and has no gradient but that of rounding."""
    return torch.cat((x, torch.tensor([0.0, 1.0, -0.5]).to(x).expand(len(x), 3)), 1)


def planes(x):
    """Every row as the plane of a map of its own."""
    return x[:, None, :, None]


def purified(x):
    mean, var = instance_stats(planes(x.detach()))
    weight, bias = mean.new_full((1,), 0.8), mean.new_full((1,), 0.1)
    maps = planes(x), planes(0.5 * x.flip(0)), planes(-x.flip(1))
    return purifier(*maps, mean, (var + 1e-5).rsqrt(), weight, bias, True).squeeze(2).T


CASES = {
    "triplet": lambda x, y: F.triplet_loss(x, y, reduction="none"),
    "triplet soft": lambda x, y: F.triplet_loss(x, y, margin=None, reduction="none"),
    "triplet squared": lambda x, y: F.triplet_loss(x, y, metric="sqeuclidean", reduction="none"),
    "triplet cosine": lambda x, y: F.triplet_loss(x, y, metric="cosine", reduction="none"),
    "triplet reference": lambda x, y: F.triplet_loss(
        x, y, reference=x.flip((0, 1)), reference_labels=y.flip(0), reduction="none"
    ),
    "hard pairs": lambda x, y: torch.stack(F.hard_pairs(x, y)[2:]),
    "weighted": lambda x, y: F.weighted_triplet_loss(x, y, reduction="none"),
    "weighted stable": lambda x, y: F.weighted_triplet_loss(x, y, stable=True, reduction="none"),
    "weighted normalized": lambda x, y: F.weighted_triplet_loss(x, y, normalize=True, reduction="none"),
    "symmetric kl": lambda x, y: F.symmetric_kl(x, x.flip((0, 1))),
    "entropy hinge": lambda x, y: F.entropy_hinge(x, 0.5 * x.flip(0), margin=0.1),
    "standardized kl": lambda x, y: F.standardized_kl(
        widened(x), widened(x).detach().flip((0, 1)), (2, 3, 4, 5, 6), reduction="none"
    ),
    "graph": lambda x, y: F.graph_alignment(x, x.flip((0, 1)), reduction="none"),
    "graph target": lambda x, y: F.graph_alignment(x.flip((0, 1)), x, symmetric=False, reduction="none"),
    "relation": lambda x, y: F.relation_alignment(x, x.flip((0, 1))),
    "center triplet": lambda x, y: F.center_triplet_loss(x, x.flip((0, 1)), y),
    "center loss": lambda x, y: F.center_loss(x, y % 2, x.flip((0, 1))[:2]),
    "center cluster": lambda x, y: F.center_cluster_loss(x, y, margin=20.0),
    "neighbor": lambda x, y: F.neighbor_loss(x, y, reduction="none"),
    "neighbor reference": lambda x, y: F.neighbor_loss(
        x, y, reference=x.flip((0, 1)), reference_labels=y.flip(0), metric="cosine", temperature=0.3, reduction="none"
    ),
    "decoupled kl": lambda x, y: F.decoupled_kl(x, x.detach().flip((0, 1)), y % 2, reduction="none"),
    "gem": lambda x, y: F.gem_pool(planes(x)),
    "gem power": lambda x, y: F.gem_pool(planes(x), p=2.5),
    "purifier": lambda x, y: purified(widened(x)),
    "prompts": lambda x, y: F.prompt_consistency(x, x.flip((0, 1))),
    "distance": lambda x, y: F.pairwise_distance(x),
    "distance to others": lambda x, y: F.pairwise_distance(x, x.flip((0, 1))),
    "squared distance": lambda x, y: F.pairwise_distance(x, metric="sqeuclidean"),
    "cosine distance": lambda x, y: F.pairwise_distance(x, metric="cosine"),
}
# Of rows divided by their norm or deviation, or of means of rows, which float32 rounds where they lie.
UNIT = (
    "triplet cosine",
    "weighted normalized",
    "cosine distance",
    "relation",
    "center triplet",
    "center cluster",
    "neighbor reference",
    "purifier",
)
METRIC = [name for name in CASES if name not in UNIT]
LOSSES = [name for name in CASES if "distance" not in name and "gem" not in name]  # a pool clamps -inf, as published
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_metric_case = pytest.mark.parametrize("case", [CASES[name] for name in METRIC], ids=METRIC)
every_loss = pytest.mark.parametrize("case", [CASES[name] for name in LOSSES], ids=LOSSES)


def value_and_grad(case, feat, labels):
    """The result, and the gradient of a fixed random weighting of its finite entries: a cotangent that is not ones."""
    feat = feat.detach().requires_grad_()
    out = case(feat, labels)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    (grad,) = torch.autograd.grad((weight * out.masked_fill(~out.detach().isfinite(), 0.0)).sum(), feat)
    return out.detach(), grad


def check_against_float64(case, feat, labels):
    out, grad = value_and_grad(case, feat, labels)
    oracle, oracle_grad = value_and_grad(case, feat.detach().double(), labels)
    assert out.dtype == torch.promote_types(feat.dtype, torch.float32)
    assert grad.dtype == feat.dtype
    length = max(*feat.shape, 1)
    assert_close_to_oracle(out, oracle, length=length)
    assert_close_to_oracle(grad, oracle_grad, length=length)


@every_case
@pytest.mark.parametrize(("n", "d"), [(1, 2), (5, 3), (37, 70)])
def test_value_and_gradient(case, backend, n, d):
    check_against_float64(case, *features(n, d, device=backend.device))


@every_metric_case
@pytest.mark.parametrize("n", [1, 2, 16])
def test_one_column(case, backend, n):
    check_against_float64(case, *features(n, 1, device=backend.device))


@every_case
@pytest.mark.parametrize("n", [255, 257, 511, 513])
def test_tile_edges(case, n):
    check_against_float64(case, *features(n, 24))


@every_case
def test_more_rows_than_a_block(case, backend):
    check_against_float64(case, *features(70, 12, device=backend.device))


@every_case
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_any_shape_dtype_layout_and_labels(case, data):
    n, d = data.draw(st.integers(0, 40), "n"), data.draw(st.integers(2, 70), "d")
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]), "dtype")
    label_dtype = data.draw(st.sampled_from([torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]), "labels")
    layout = data.draw(st.sampled_from(LAYOUTS), "layout")
    num_instances = data.draw(st.integers(1, 8), "num_instances")
    feat, labels = features(n, d, num_instances=num_instances, dtype=dtype, seed=data.draw(st.integers(0, 99), "seed"))
    if dtype in (torch.bfloat16, torch.float16):
        feat = feat + 1e-3 * torch.arange(n).unsqueeze(1).to(dtype)  # rounding must not make two rows equal
    check_against_float64(case, with_layout(feat, layout), labels.to(label_dtype))


@every_case
@pytest.mark.parametrize("n", [0, 1])
def test_no_row_and_one_row(case, backend, n):
    feat = torch.randn(n, 5, device=backend.device, requires_grad=True)
    out = case(feat, torch.zeros(n, dtype=torch.int64, device=backend.device))
    out[out.isfinite()].sum().backward()
    assert not out.isnan().any()
    assert feat.grad.shape == feat.shape
    assert feat.grad.isfinite().all()


@every_loss
def test_rows_without_positives_or_negatives(case, backend):
    feat, _ = features(9, 6, device=backend.device)
    for labels in (torch.arange(9), torch.zeros(9, dtype=torch.int64)):
        out, grad = value_and_grad(case, feat, labels.to(backend.device))
        assert not out.isnan().any()
        assert grad.isfinite().all()
        check_against_float64(case, feat, labels.to(backend.device))


@every_case
def test_negative_and_huge_labels(case, backend):
    feat, labels = features(11, 8, device=backend.device)
    expected = value_and_grad(case, feat, labels)
    spread = torch.where(labels % 2 == 0, labels - 2**62, 2**62 + labels)
    for actual, wanted in zip(value_and_grad(case, feat, spread), expected, strict=True):
        assert torch.equal(actual, wanted)


@every_case
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_strides_do_not_matter(case, backend, layout):
    feat, labels = features(9, 19, device=backend.device)
    strided = with_layout(feat, layout)
    assert layout == "contiguous" or not strided.is_contiguous()
    for actual, wanted in zip(value_and_grad(case, strided, labels), value_and_grad(case, feat, labels), strict=True):
        assert_close(actual, wanted)  # PyTorch's own norms and products may round strided rows otherwise


@every_case
def test_expanded_rows(case):
    feat = torch.randn(1, 12).expand(10, 12)
    out = case(feat, torch.arange(10) // 2)
    assert out.isfinite().all()


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(case, backend, dtype):
    feat, labels = features(12, 33, dtype=dtype, device=backend.device)
    check_against_float64(case, feat, labels)


@every_metric_case
@pytest.mark.parametrize("offset", [100.0, 1e4])
def test_a_shared_offset_costs_no_digits(case, backend, offset):
    feat, labels = features(14, 24, offset=offset, device=backend.device)
    check_against_float64(case, feat, labels)


@every_case
@pytest.mark.parametrize("gap", [1e-2, 1e-4])
def test_near_duplicates_keep_their_digits(case, backend, gap):
    feat, labels = features(13, 16, device=backend.device)
    feat = near_duplicates(feat, gap)
    out, grad = value_and_grad(case, feat, labels)
    oracle, oracle_grad = value_and_grad(case, feat.double(), labels)
    assert_close_to_oracle(out, oracle, length=16)
    # The direction between two rows is a difference of sums: it carries a few eps * |f| over their distance.
    blur = 4 * torch.finfo(torch.float32).eps * feat.norm(dim=1).max().item() / gap
    assert (grad - oracle_grad).abs().max() <= max(blur, 1e-5) * oracle_grad.abs().max()


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_duplicates_give_finite_gradients(case, backend, dtype):
    feat, labels = features(13, 16, dtype=dtype, device=backend.device)
    for degenerate in (near_duplicates(feat, 0.0), torch.ones_like(feat)):
        out, grad = value_and_grad(case, degenerate, labels)
        assert out.isfinite().all()
        assert grad.isfinite().all()


@every_case
def test_norms_beyond_256_in_float16(case, backend):
    feat, labels = features(16, 64, scale=400.0, dtype=torch.float16, device=backend.device)
    assert feat.float().norm(dim=1).min() > 256
    check_against_float64(case, feat, labels)


@every_loss
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_row_is_never_silent(case, backend, bad):
    feat, labels = features(9, 8, device=backend.device)
    feat[7, 3] = bad
    assert not case(feat, labels).sum().isfinite()


@every_case
def test_inputs_are_not_written(case, backend):
    feat, labels = features(10, 12, device=backend.device)
    kept = feat.clone(), labels.clone()
    value_and_grad(case, feat, labels)
    assert torch.equal(feat, kept[0])
    assert torch.equal(labels, kept[1])


@every_case
def test_twice_in_one_graph(case, backend):
    feat, labels = features(12, 6, device=backend.device)
    _, once = value_and_grad(case, feat, labels)
    _, twice = value_and_grad(lambda x, y: case(x, y) + case(x, y), feat, labels)
    assert_close(twice, 2 * once)


@every_case
def test_no_graph_without_requires_grad(case):
    feat, labels = features(8, 4)
    assert not case(feat, labels).requires_grad
    with torch.no_grad():
        assert not case(feat.requires_grad_(), labels).requires_grad


@every_case
@pytest.mark.parametrize(("n", "d"), [(64, 2048), (120, 2048), (700, 96), (520, 700)])
def test_bits_do_not_depend_on_threads(case, with_threads, n, d):
    feat, labels = features(n, d)
    results = []
    for threads in (1, 2):
        with_threads(threads)
        results.append(value_and_grad(case, feat, labels))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@every_case
def test_every_instruction_set(case, isa):
    check_against_float64(case, *features(130, 67))


@every_case
def test_autocast_changes_nothing(case):
    feat, labels = features(24, 16)
    plain = value_and_grad(case, feat, labels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = value_and_grad(case, feat, labels)
    for one, two in zip(plain, mixed, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


@every_case
def test_one_graph_for_two_batch_sizes(case):
    compiled = torch.compile(case, backend="aot_eager", fullgraph=True)
    for n in (12, 18):
        feat, labels = features(n, 8)
        eager, traced = value_and_grad(case, feat, labels), value_and_grad(compiled, feat, labels)
        assert_close(eager, traced)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["triplet", "weighted"])
def test_inductor_compiles_the_loss(name):
    feat, labels = features(16, 8)
    compiled = torch.compile(CASES[name], fullgraph=True)
    assert_close(value_and_grad(CASES[name], feat, labels), value_and_grad(compiled, feat, labels))


def test_memory_is_linear_in_rows(tmp_path):
    """A process of its own: peak memory is of a process. N x N float32 would be 256 MiB for these 8192 rows."""
    program = """
        import resource, torch, vifast.functional as F
        from vifast.testing import features
        feat, labels = features(8192, 64)
        feat.requires_grad_()
        def graph(x, y):
            return F.graph_alignment(x, x.flip(1))

        losses = F.triplet_loss, F.weighted_triplet_loss, F.neighbor_loss, graph
        for loss in losses:
            loss(feat[:600], labels[:600]).backward()  # load everything once
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for loss in losses:
            loss(feat, labels).backward()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) < 64
