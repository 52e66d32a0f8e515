"""ResNet of the second kind in PyTorch, with the names of timm's `resnetv2_50`."""

from collections.abc import Sequence

from torch import Tensor, nn


class Shortcut(nn.Module):
    def __init__(self, before: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, filters, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Block(nn.Module):
    def __init__(self, before: int, filters: int, stride: int, first: bool) -> None:
        super().__init__()
        inner = filters // 4
        self.downsample = Shortcut(before, filters, stride) if first else None
        self.norm1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.norm3, self.conv3 = nn.BatchNorm2d(inner), nn.Conv2d(inner, filters, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x).relu()
        x = x if self.downsample is None else self.downsample(y)
        y = self.conv2(self.norm2(self.conv1(y)).relu())
        return x + self.conv3(self.norm3(y).relu())


class Part(nn.Module):
    """A module whose parts have names."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class ResNetV2(nn.Module):
    def __init__(self, counts: Sequence[int], side: int, classes: int) -> None:
        super().__init__()
        self.stem = Part(conv=nn.Conv2d(3, 64, 7, 2, 3, bias=False), pool=nn.MaxPool2d(3, 2, 1))
        before, stages = 64, []
        for stage, count in enumerate(counts):
            blocks, filters = [], 256 << stage
            for i in range(count):
                blocks.append(Block(before, filters, 2 if stage and i == 0 else 1, i == 0))
                before = filters
            stages.append(Part(blocks=nn.Sequential(*blocks)))
        self.stages, self.norm = nn.Sequential(*stages), nn.BatchNorm2d(before)
        self.head = Part(fc=nn.Conv2d(before, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem.pool(self.stem.conv(x))
        for stage in self.stages:
            x = stage.blocks(x)
        return self.head.fc(self.norm(x).relu().mean((2, 3), keepdim=True)).flatten(1)
