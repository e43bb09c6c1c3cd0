"""Residual networks whose parameters carry torchvision's names, whole or as a run of stages.

A two-stream system needs pieces of one network: a stem per modality, a shared trunk, a second branch. A
`ResNet` is therefore the stages ``first..last`` of the network, where stage 0 is the stem (``conv1``,
``bn1``, ReLU, max-pool) and stages 1 to 4 are ``layer1`` to ``layer4``; only what is used is allocated.
"""

from collections.abc import Iterator

from torch import Tensor, nn


def _conv(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """Residual frame of both block types: subclasses have ``branch(x)`` and their width's expansion."""

    expansion: int

    def __init__(self, n_in: int, width: int, stride: int):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        n_out = width * self.expansion
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(_conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.branch(x) + shortcut)


class BasicBlock(_Block):
    """Two 3x3 convolutions (He et al. 2016, ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, n_in: int, width: int, stride: int):
        super().__init__(n_in, width, stride)
        self.conv1, self.bn1 = _conv(n_in, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 convolutions with the stride on the 3x3 ("v1.5", where torchvision has it)."""

    expansion = 4

    def __init__(self, n_in: int, width: int, stride: int):
        super().__init__(n_in, width, stride)
        self.conv1, self.bn1 = _conv(n_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, width * 4, 1), nn.BatchNorm2d(width * 4)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet(nn.Module):
    """Stages ``first..last`` of a residual network, without pooling and classifier.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks in each of the four stages.
        width: channels of the stem; stage s has ``width * 2**(s-1) * block.expansion``.
        first, last: the stages held, ``0 <= first <= last <= 4``; 0 is the stem.
        last_stride: stride of stage 4; re-identification keeps the larger map with 1.

    ``forward(x, after)`` puts a system's own modules in between: ``after["3_5"]`` follows block 5, from 0, of stage 3.
    A list ``maps`` gets what each of the stages 1 to 4 ends with, appended.

    Shapes:
        images ``[N, 3, H, W]`` (or the map of stage ``first - 1``) to ``[N, out_channels, H', W']``; with all
        stages H' = H / 16 for ``last_stride=1``, H / 32 for 2 (rounded up at each stage).

    Raises:
        ValueError: a stage range that is empty or outside 0..4, or a stride other than 1 and 2.

    Source: He et al. 2016; strides and parameter names as in torchvision's ``resnet.py``.

    >>> import torch
    >>> trunk = create("resnet18", first=1)
    >>> trunk(torch.zeros(2, 64, 24, 12)).shape
    torch.Size([2, 512, 6, 3])
    """

    def __init__(
        self,
        block: type[_Block],
        depths: tuple[int, int, int, int],
        *,
        width: int = 64,
        first: int = 0,
        last: int = 4,
        last_stride: int = 1,
    ):
        if not 0 <= first <= last <= 4:
            raise ValueError(f"first, last: expected 0 <= first <= last <= 4, got {first} and {last}")
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride: expected 1 or 2, got {last_stride!r}")
        super().__init__()
        self.first, self.last = first, last
        self.channels = {0: width}  # of each stage's output, up to the last one held
        if first == 0:
            self.conv1, self.bn1 = _conv(3, width, 7, 2), nn.BatchNorm2d(width)
            self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
        for stage, depth in enumerate(depths, start=1):
            if stage > last:
                break
            n_in, stage_width = self.channels[stage - 1], width * 2 ** (stage - 1)
            self.channels[stage] = stage_width * block.expansion
            if stage < first:
                continue
            stride = (1, 2, 2, last_stride)[stage - 1]
            blocks = [block(n_in, stage_width, stride)]
            blocks += [block(self.channels[stage], stage_width, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def out_channels(self) -> int:
        return self.channels[self.last]

    def stages(self) -> Iterator[tuple[int, nn.Sequential]]:
        """The residual stages held, as (number, blocks)."""
        for stage in range(max(self.first, 1), self.last + 1):
            yield stage, getattr(self, f"layer{stage}")

    def stem(self, x: Tensor) -> Tensor:
        """Stage 0 where it is held, else the input unchanged."""
        if self.first > 0:
            return x
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def forward(self, x: Tensor, after: nn.ModuleDict | None = None, *, maps: list[Tensor] | None = None) -> Tensor:
        x = self.stem(x)
        for stage, blocks in self.stages():
            for index, block in enumerate(blocks):
                x = block(x)
                if after is not None and (place := f"{stage}_{index}") in after:
                    x = after[place](x)
            if maps is not None:
                maps.append(x)
        return x


BACKBONES = {
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64),
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64),
    "resnet_tiny": (BasicBlock, (1, 1, 1, 1), 16),  # the demo's: no published weights
}


def create(name: str, **options) -> ResNet:
    """A backbone by name, one of `BACKBONES`; ``options`` are the keywords of `ResNet`.

    Raises:
        ValueError: a name that is not in `BACKBONES`.

    >>> create("resnet50", last=2).out_channels
    512
    """
    if name not in BACKBONES:
        raise ValueError(f"name: expected one of {', '.join(BACKBONES)}, got {name!r}")
    block, depths, width = BACKBONES[name]
    return ResNet(block, **{"depths": depths, "width": width, **options})
