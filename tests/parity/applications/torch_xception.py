"""Xception in PyTorch, with the names of timm's `legacy_xception`."""

from torch import Tensor, nn


class SeparableConv2d(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.conv1(x))


class Block(nn.Module):
    """Separable convolutions of `filters`, whose list begins with a ReLU or does not."""

    def __init__(self, before: int, filters: tuple[int, ...], halves: bool, relu: bool = True) -> None:
        super().__init__()
        self.skip = nn.Conv2d(before, filters[-1], 1, 2, bias=False) if halves else None
        self.skipbn = nn.BatchNorm2d(filters[-1]) if halves else None
        parts: list[nn.Module] = []
        for inputs, outputs in zip((before, *filters), filters, strict=False):
            parts += [nn.ReLU(), SeparableConv2d(inputs, outputs), nn.BatchNorm2d(outputs)]
        self.rep = nn.Sequential(*parts[0 if relu else 1:], *([nn.MaxPool2d(3, 2, 1)] if halves else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.rep(x) + (x if self.skip is None else self.skipbn(self.skip(x)))


class Xception(nn.Module):
    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64)
        self.block1, self.block2, self.block3 = Block(64, (128, 128), True, relu=False), Block(128, (256, 256), True), \
            Block(256, (728, 728), True)
        for i in range(4, 12):
            setattr(self, f"block{i}", Block(728, (728, 728, 728), False))
        self.block12 = Block(728, (728, 1024), True)
        self.conv3, self.bn3 = SeparableConv2d(1024, 1536), nn.BatchNorm2d(1536)
        self.conv4, self.bn4, self.fc = SeparableConv2d(1536, 2048), nn.BatchNorm2d(2048), nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        for i in range(1, 13):
            x = getattr(self, f"block{i}")(x)
        x = self.bn4(self.conv4(self.bn3(self.conv3(x)).relu())).relu()
        return self.fc(x.mean((2, 3)))
