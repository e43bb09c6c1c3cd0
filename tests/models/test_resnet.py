import pytest
import torch

from vifast.models import ResNet, create
from vifast.models.resnet import BasicBlock


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "classifier", "published"),
    [("resnet50", 2048 * 1000 + 1000, 25_557_032), ("resnet18", 512 * 1000 + 1000, 11_689_512)],
)
def test_parameter_count_is_torchvisions_without_its_classifier(name, classifier, published):
    assert count(create(name)) == published - classifier


def test_names_are_torchvisions():
    names = set(create("resnet50").state_dict())
    assert len(names) == 318  # torchvision's 320 less fc.weight and fc.bias
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.num_batches_tracked",
        "layer3.5.conv3.weight",
        "layer4.2.bn3.bias",
    } <= names
    assert "layer1.0.downsample.0.weight" not in create("resnet18").state_dict()


def test_stride_sits_on_the_3x3_convolution():
    block = create("resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize(
    ("image", "front", "branch"),
    [((384, 144), (48, 18), (24, 9)), ((288, 144), (36, 18), (18, 9)), ((256, 128), (32, 16), (16, 8))],
)
def test_map_sizes_of_front_and_branch(image, front, branch):
    with torch.device("meta"):
        low, high = create("resnet50", last=2), create("resnet50", first=3)
        x = low(torch.empty(1, 3, *image))
        assert x.shape == (1, 512, *front)
        assert high(x).shape == (1, 2048, *branch)


def test_three_pieces_hold_what_idkl_uses():
    pieces = [create("resnet50", last=2), create("resnet50", first=3), create("resnet50", first=3)]
    purifier = 2 * 2048 + 4 * 2048 * 128  # InstanceNorm and two pairs of 1x1 convolutions
    assert sum(map(count, pieces)) + purifier == 46_623_808


def test_stem_then_trunk_equals_whole():
    torch.manual_seed(0)
    whole = create("resnet_tiny").eval()
    stem, trunk = create("resnet_tiny", last=0).eval(), create("resnet_tiny", first=1).eval()
    for piece in (stem, trunk):
        piece.load_state_dict({name: whole.state_dict()[name] for name in piece.state_dict()})
    x = torch.randn(2, 3, 64, 32)
    assert torch.equal(trunk(stem(x)), whole(x))
    assert [number for number, _ in trunk.stages()] == [1, 2, 3, 4]


def test_maps_are_those_of_the_stages_with_what_follows_them():
    trunk = create("resnet_tiny", depths=(2, 1, 1, 1))
    after, maps = torch.nn.ModuleDict({"2_0": torch.nn.Hardtanh(0, 0.25)}), []
    out = trunk(torch.randn(2, 3, 64, 32), after, maps=maps)
    assert [x.shape[1:] for x in maps] == [(16, 16, 8), (32, 8, 4), (64, 4, 2), (128, 4, 2)]
    assert maps[1].max() == 0.25
    assert maps[3] is out


def test_last_stride_two_halves_the_map():
    with torch.device("meta"):
        assert create("resnet18", last_stride=2)(torch.empty(1, 3, 64, 32)).shape == (1, 512, 2, 1)


@pytest.mark.parametrize("stages", [{"first": 3, "last": 2}, {"first": -1}, {"last": 5}])
def test_rejects_stage_range(stages):
    with pytest.raises(ValueError, match="expected 0 <= first <= last <= 4"):
        create("resnet18", **stages)


def test_rejects_stride_and_name():
    with pytest.raises(ValueError, match="last_stride: expected 1 or 2, got 3"):
        ResNet(BasicBlock, (1, 1, 1, 1), last_stride=3)
    with pytest.raises(ValueError, match="expected one of resnet50, resnet18, resnet_tiny, got 'vgg'"):
        create("vgg")
