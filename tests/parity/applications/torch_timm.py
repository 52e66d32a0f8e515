"""MobileNets and EfficientNets in PyTorch, with timm's names; pixels as into torchvision's."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from convolt.applications.mobilenet_v2 import divisible
from tests.parity.applications.torch_mobile import Network

Stage = tuple[int, int, int, int, int]
"""(expansion, kernel size, stride of the first block, filters, blocks); expansion 0: depthwise, then 1×1 with an activation."""


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_expand(nn.functional.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class Block(nn.Module):
    """DepthwiseSeparableConv for an expansion of 0 or 1, else InvertedResidual."""

    def __init__(self, before: int, expansion: int, size: int, stride: int, filters: int, weighed: bool, act: nn.Module) -> None:
        super().__init__()
        self.act, self.expansion, self.shortcut = act, expansion, expansion > 0 and stride == 1 and before == filters
        wide = before * max(1, expansion)
        depthwise = nn.Conv2d(wide, wide, size, stride, size // 2, groups=wide, bias=False)
        self.se = SqueezeExcite(wide, max(1, before // 4)) if weighed else nn.Identity()
        if expansion > 1:
            self.conv_pw, self.bn1 = nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide)
            self.conv_dw, self.bn2 = depthwise, nn.BatchNorm2d(wide)
            self.conv_pwl, self.bn3 = nn.Conv2d(wide, filters, 1, bias=False), nn.BatchNorm2d(filters)
        else:
            self.conv_dw, self.bn1 = depthwise, nn.BatchNorm2d(wide)
            self.conv_pw, self.bn2 = nn.Conv2d(wide, filters, 1, bias=False), nn.BatchNorm2d(filters)

    def forward(self, x: Tensor) -> Tensor:
        if self.expansion > 1:
            y = self.act(self.bn1(self.conv_pw(x)))
            y = self.bn3(self.conv_pwl(self.se(self.act(self.bn2(self.conv_dw(y))))))
        else:
            y = self.bn2(self.conv_pw(self.se(self.act(self.bn1(self.conv_dw(x))))))
            y = self.act(y) if self.expansion == 0 else y
        return x + y if self.shortcut else y


class Timm(nn.Module):
    def __init__(self, stages: Sequence[Stage], first: int, last: int, weighed: bool, act: nn.Module, pixels: bool, side: int,
                 classes: int) -> None:
        super().__init__()
        self.pixels, self.act = pixels, act
        self.conv_stem, self.bn1 = nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first)
        before, parts = first, []
        for expansion, size, stride, filters, count in stages:
            blocks = []
            for i in range(count):
                blocks.append(Block(before, expansion, size, stride if i == 0 else 1, filters, weighed, act))
                before = filters
            parts.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*parts)
        if last:
            self.conv_head, self.bn2 = nn.Conv2d(before, last, 1, bias=False), nn.BatchNorm2d(last)
        self.last, self.classifier = last, nn.Linear(last or before, classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.pixels:
            mean, deviation = (x.new_tensor(v).reshape(3, 1, 1) for v in Network.IMAGENET)
            x = (x / 255 - mean) / deviation
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        if self.last:
            x = self.act(self.bn2(self.conv_head(x)))
        return self.classifier(x.mean((2, 3)))


def mobilenet(side: int, classes: int) -> nn.Module:
    stages = [(0, 3, 1, 64, 1), *[(0, 3, 2, filters, count) for filters, count in ((128, 2), (256, 2), (512, 6), (1024, 2))]]
    return Timm(stages, 32, 0, False, nn.ReLU6(), False, side, classes)


def mobilenet_v2(side: int, classes: int) -> nn.Module:
    stages = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 3, 2, 32, 3), (6, 3, 2, 64, 4), (6, 3, 1, 96, 3), (6, 3, 2, 160, 3),
              (6, 3, 1, 320, 1)]
    return Timm(stages, 32, 1280, False, nn.ReLU6(), False, side, classes)


def efficientnet(width: float, depth: float, side: int, classes: int) -> nn.Module:
    stages = [(*block, divisible(filters * width), math.ceil(depth * count)) for *block, filters, count in (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1))]
    return Timm(stages, divisible(32 * width), divisible(1280 * width), True, nn.SiLU(), True, side, classes)
