import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vifast.models import create
from vifast.systems.idkl import IDKL, IDKLNetwork, IDKLOptions

GOLDEN = Path(__file__).parents[1] / "golden" / "idkl_trunk.npz"
PURIFIER = {
    "norm": "inorm",
    "gate_normed.0": "mask_in.reduce",
    "gate_normed.2": "mask_in.expand",
    "gate_raw.0": "mask_raw.reduce",
    "gate_raw.2": "mask_raw.expand",
}
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def canonical(name):
    """The name under which the golden network's weights were drawn."""
    if not name.startswith("purifier."):
        return name
    module, _, tensor = name.removeprefix("purifier.").rpartition(".")
    return f"{PURIFIER[module]}.{tensor}"


def drawn(name, shape):
    state = np.random.RandomState(zlib.crc32(canonical(name).encode()) & 0x7FFFFFFF)
    z = torch.from_numpy(state.standard_normal(tuple(shape)))
    if len(shape) == 4:
        return z * (2 / (shape[0] * shape[2] * shape[3])) ** 0.5
    if name.endswith("running_var"):
        return 1 + 0.1 * z.abs()
    return 0.1 * z + (1 if name.endswith("weight") else 0)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture
def network():
    result = IDKLNetwork().double()
    with torch.no_grad():
        for name, value in result.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value.copy_(drawn(name, value.shape))
    return result


def test_golden_trunk(network, golden):
    images = golden["img"].double()
    network.eval()
    with torch.no_grad():
        shared, purified = network(images)
        assert torch.equal(network.pooled_shared(images), shared)
    assert_close(shared, golden["eval__sh"], **EXACT)
    assert_close(purified.fused, golden["eval__sp"], **EXACT)
    network.train()
    images.requires_grad_()
    shared, purified = network(images)
    assert_close(shared.detach(), golden["train__sh"], **EXACT)
    assert_close(purified.fused.detach(), golden["train__sp"], **EXACT)
    cotangent = torch.from_numpy(np.random.RandomState(1001).standard_normal((4, 2048)).astype(np.float32)).double()
    torch.autograd.backward((shared, purified.fused), (cotangent, cotangent))
    parameters = dict(network.named_parameters())
    for name in ("front.conv1.weight", "specific.layer4.2.bn3.weight", "shared.layer3.0.bn1.bias"):
        wanted = golden[f"train__vjp_{name.replace('.', '_')}"]
        assert_close(parameters[name].grad, wanted, rtol=1e-8, atol=1e-9 * wanted.abs().max())
    wanted = golden["train__vjp_img"]
    assert_close(images.grad, wanted, rtol=1e-8, atol=1e-9 * wanted.abs().max())


def test_parameters_are_those_that_the_release_uses():
    with torch.device("meta"):
        idkl = IDKL(IDKLOptions(), num_classes=395)
    count = sum(p.numel() for p in idkl.network.parameters())
    assert count == 46_623_808
    heads = {name: sum(p.numel() for p in module.parameters()) for name, module in idkl.objective.named_children()}
    assert heads["classifier_shared"] == heads["classifier_specific"] == heads["classifier_entropy"] == 808_960
    assert heads["modality_shared"] == heads["modality_specific"] == 215_602
    assert heads["neck_shared"] == heads["neck_specific"] == 4_096
    assert count + sum(heads.values()) == 74_967_332 - (72_101_056 - 46_623_808)


TINY = {"backbone": "resnet_tiny", "backbone_width": 4, "reduction": 4, "dropout": 0.0}


def batch(identities=2, images=4):
    rows = identities * images
    return {
        "image": torch.randn(rows, 3, 64, 32),
        "label": torch.arange(rows) // images,
        "modality": 1 - torch.arange(rows) % 2,
    }


def test_every_parameter_that_trains_gets_a_gradient():
    idkl = IDKL(IDKLOptions(**TINY), num_classes=3)
    idkl(batch())["loss"].backward()
    silent = [name for name, p in idkl.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


def test_retrieval_needs_the_shared_branch_alone():
    idkl, images = IDKL(IDKLOptions(**TINY), num_classes=3).eval(), batch()
    before = idkl.embed(images)
    with torch.no_grad():
        for module in (idkl.network.specific, idkl.network.purifier):
            for parameter in module.parameters():
                parameter.fill_(float("nan"))
    assert torch.equal(idkl.embed(images), before)
    assert_close(before.norm(dim=1), torch.ones(8))
    assert_close(idkl.embed({name: value[:1] for name, value in images.items()}), before[:1])  # no squeeze


@pytest.mark.parametrize(
    ("terms", "purifier"),
    [(("ce_shared", "triplet_shared"), False), (("ce_shared", "purifier", "tgsa"), True), (("csa", "mdr"), True)],
)
def test_left_out_terms_are_zero_and_the_rest_is_what_it_was(terms, purifier):
    torch.manual_seed(0)
    whole = IDKL(IDKLOptions(**TINY, purifier=purifier), num_classes=3)
    part = IDKL(IDKLOptions(**TINY, purifier=purifier, terms=terms), num_classes=3)
    part.load_state_dict(whole.state_dict())
    images = batch()
    one, other = whole(images), part(images)
    for name, value in other.items():
        if name != "loss":
            assert torch.equal(value, one[name] if name in terms else torch.zeros(())), name


def test_distillation_to_shared_moves_the_shared_branch_alone():
    options = {**TINY, "terms": ("tgsa", "csa"), "purifier": False}
    for distill, moved in (("symmetric", True), ("to_shared", False)):
        idkl = IDKL(IDKLOptions(**options, distill=distill), num_classes=3)
        idkl(batch())["loss"].backward()
        grads = [p.grad for p in idkl.network.specific.parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in grads) == moved
        assert idkl.network.shared.layer3[0].conv1.weight.grad.abs().sum() > 0


def test_low_precision_keeps_the_objective_in_float32():
    idkl = IDKL(IDKLOptions(**TINY), num_classes=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = idkl(batch())
    assert {value.dtype for value in parts.values()} == {torch.float32}


def test_weights_start_all_three_pieces(tmp_path):
    whole = create("resnet_tiny", width=4)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    idkl = IDKL(IDKLOptions(**TINY, weights=str(tmp_path / "weights.pth")), num_classes=3)
    for piece in (idkl.network.front, idkl.network.shared, idkl.network.specific):
        for name, value in piece.state_dict().items():
            assert torch.equal(value, whole.state_dict()[name])
