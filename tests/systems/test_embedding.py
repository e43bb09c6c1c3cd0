import pytest
import torch
from torch.testing import assert_close

from vifast.models import create
from vifast.systems.embedding import EmbeddingNetwork, EmbeddingOptions

TINY = EmbeddingOptions(backbone="resnet_tiny", backbone_width=4, non_local=(0, 1, 1, 0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return EmbeddingNetwork(TINY)


def test_published_network_has_the_parameters_of_its_parts():
    with torch.device("meta"):
        network = EmbeddingNetwork(EmbeddingOptions())
        resnet = create("resnet50")
    assert list(network.non_local) == ["2_2", "2_3", "3_3", "3_4", "3_5"]
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    # A block of embed 1 on C channels: theta, phi and g C + 1 each, W and its bias 2 C, BN 2 C.
    blocks = 2 * (7 * 512 + 3) + 3 * (7 * 1024 + 3)
    assert count == {
        "trunk": sum(p.numel() for p in resnet.parameters()),
        "non_local": blocks,
        "pool": 1,
        "neck": 2 * 2048,
    }
    assert sum(count.values()) == 23_508_032 + 28_687 + 1 + 4096
    assert not network.neck.bias.requires_grad


def test_training_gives_the_neck_s_output_and_evaluation_unit_rows(network):
    images = torch.randn(6, 3, 48, 24)
    seen = []
    network.neck.register_forward_hook(lambda module, args, output: seen.append(output))
    assert torch.equal(network(images), seen[0])
    network.eval()
    assert_close(network(images), torch.nn.functional.normalize(seen[1] if len(seen) > 1 else network.neck(seen[0])))
    assert_close(network(images).norm(dim=1), torch.ones(6))


def test_non_local_blocks_follow_the_last_blocks_of_a_stage(network):
    images, order = torch.randn(2, 3, 48, 24), []
    for name, module in network.named_modules():
        if name in ("trunk.layer2.0", "trunk.layer3.0", "trunk.layer4.0", "non_local.2_0", "non_local.3_0"):
            module.register_forward_hook(lambda module, args, output, name=name: order.append(name))
    network(images)
    assert order == ["trunk.layer2.0", "non_local.2_0", "trunk.layer3.0", "non_local.3_0", "trunk.layer4.0"]


def test_every_trainable_parameter_gets_a_gradient(network):
    network(torch.randn(4, 3, 48, 24)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_pooling_is_clamped_where_published(network):
    assert network.pool.clamp
    assert network.pool.eps == 1e-6
    assert network.pool.p.requires_grad


def test_weights_fill_the_trunk(tmp_path):
    source = create("resnet_tiny", width=4)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = EmbeddingNetwork(EmbeddingOptions(**{**vars(TINY), "weights": str(tmp_path / "w.pth")}))
    assert torch.equal(network.trunk.layer4[0].conv2.weight, source.layer4[0].conv2.weight)


def test_compiled_trunk_takes_the_non_local_blocks_with_it(network):
    images = torch.randn(2, 3, 48, 24)
    torch.manual_seed(1)
    for block in network.non_local.values():
        torch.nn.init.normal_(block.norm.weight)
    network.eval()
    wanted = network(images)
    torch._dynamo.reset()
    network.trunk.compile(fullgraph=True)
    assert_close(network(images), wanted, rtol=1e-4, atol=1e-5)
