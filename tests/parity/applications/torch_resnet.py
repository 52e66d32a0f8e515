"""ResNet, ResNeXt and Wide ResNet in PyTorch, with the names of torchvision and of WideResNet-pytorch."""

from collections.abc import Sequence

from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)


class Block(nn.Module):
    """Both kinds of blocks; `width` is that of the inner convolutions."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, groups: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            self.conv1, self.bn1 = conv_bn(inputs, width, 1)
            self.conv2, self.bn2 = conv_bn(width, width, 3, stride, groups)
            self.conv3, self.bn3 = conv_bn(width, outputs, 1)
        else:
            self.conv1, self.bn1 = conv_bn(inputs, width, 3, stride)
            self.conv2, self.bn2 = conv_bn(width, outputs, 3)
        self.downsample = nn.Sequential(*conv_bn(inputs, outputs, 1, stride)) if stride > 1 or inputs != outputs else None
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.bottleneck:
            y = self.bn3(self.conv3(y.relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    def __init__(self, counts: Sequence[int], side: int, classes: int, *, bottleneck: bool = True, groups: int = 1,
                 base_width: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 64, 7, 2)
        self.conv1.padding = (3, 3)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage, count in enumerate(counts):
            filters = 64 << stage
            blocks = []
            for i in range(count):
                stride = 2 if i == 0 and stage > 0 else 1
                width = filters * base_width // 64 * groups if bottleneck else filters
                outputs = 4 * filters if bottleneck else filters
                blocks.append(Block(channels, width, outputs, stride, groups, bottleneck))
                channels = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        before = self.bn1(x).relu()
        shortcut = x if self.convShortcut is None else self.convShortcut(before)
        return shortcut + self.conv2(self.bn2(self.conv1(before)).relu())


class Group(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *(WideBlock(outputs, outputs, 1) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-28-10."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1, self.block2, self.block3 = Group(16, 160, 1), Group(160, 320, 2), Group(320, 640, 2)
        self.bn1, self.fc = nn.BatchNorm2d(640), nn.Linear(640, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))).relu()
        return self.fc(x.mean((2, 3)))
