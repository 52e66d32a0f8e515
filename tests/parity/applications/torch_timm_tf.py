"""MobileNet v3 and TensorFlow's EfficientNets in PyTorch, with timm's names; pixels 0 … 255 as into ours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from convolt.applications.mobilenet_v2 import divisible
from tests.parity.applications.torch_mobile import LARGE, SMALL, Network

Pixels = tuple[tuple[float, float, float], tuple[float, float, float]]
HALVES: Pixels = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Style:
    """How layers pad (as TensorFlow or on all sides alike), normalize, and weigh channels (as in MobileNet v3 or in EfficientNet)."""

    same: bool
    eps: float
    hard: bool

    def conv(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Module:
        kind = SameConv if self.same and stride > 1 else nn.Conv2d
        return kind(inputs, outputs, size, stride, 0 if kind is SameConv else size // 2, groups=groups, bias=bias)

    def norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, self.eps)


class SameConv(nn.Conv2d):
    """Pads as TensorFlow's "same": what is odd goes below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for side, size, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            whole = max((math.ceil(side / stride) - 1) * stride + size - side, 0)
            pads += [whole // 2, whole - whole // 2]
        return super().forward(nn.functional.pad(x, pads))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int, hard: bool) -> None:
        super().__init__()
        self.hard = hard
        self.conv_reduce, self.conv_expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_reduce(x.mean((2, 3), keepdim=True))
        y = self.conv_expand(y.relu() if self.hard else nn.functional.silu(y))
        return x * (nn.functional.hardsigmoid(y) if self.hard else y.sigmoid())


@dataclass(frozen=True)
class Row:
    """Blocks: "ds" (depthwise, 1×1), "ir" (1×1, depthwise, 1×1), "er" (3×3, 1×1) or "cn" (one convolution)."""

    kind: str
    size: int
    stride: int
    wide: int  # channels inside
    filters: int
    weighed: bool = False
    act: Callable[[Tensor], Tensor] = nn.functional.silu


class Block(nn.Module):
    def __init__(self, before: int, row: Row, style: Style) -> None:
        super().__init__()
        self.row, self.shortcut = row, row.stride == 1 and before == row.filters and row.size > 1
        squeezed = divisible(row.wide / 4) if style.hard else max(1, before // 4)
        self.se = SqueezeExcite(row.wide, squeezed, style.hard) if row.weighed else nn.Identity()
        if row.kind == "cn":
            self.conv, self.bn1 = style.conv(before, row.filters, row.size, row.stride), style.norm(row.filters)
        elif row.kind == "er":
            self.conv_exp, self.bn1 = style.conv(before, row.wide, row.size, row.stride), style.norm(row.wide)
            self.conv_pwl, self.bn2 = style.conv(row.wide, row.filters, 1), style.norm(row.filters)
        elif row.kind == "ds":
            self.conv_dw, self.bn1 = style.conv(before, before, row.size, row.stride, before), style.norm(before)
            self.conv_pw, self.bn2 = style.conv(before, row.filters, 1), style.norm(row.filters)
        else:
            self.conv_pw, self.bn1 = style.conv(before, row.wide, 1), style.norm(row.wide)
            self.conv_dw, self.bn2 = style.conv(row.wide, row.wide, row.size, row.stride, row.wide), style.norm(row.wide)
            self.conv_pwl, self.bn3 = style.conv(row.wide, row.filters, 1), style.norm(row.filters)

    def forward(self, x: Tensor) -> Tensor:
        act = self.row.act
        if self.row.kind == "cn":
            y = act(self.bn1(self.conv(x)))
        elif self.row.kind == "er":
            y = self.bn2(self.conv_pwl(act(self.bn1(self.conv_exp(x)))))
        elif self.row.kind == "ds":
            y = self.bn2(self.conv_pw(self.se(act(self.bn1(self.conv_dw(x))))))
        else:
            y = act(self.bn2(self.conv_dw(act(self.bn1(self.conv_pw(x))))))
            y = self.bn3(self.conv_pwl(self.se(y)))
        return x + y if self.shortcut else y


class Timm(nn.Module):
    """Stages of blocks; EfficientNets take the mean after the last convolution, MobileNet v3 before it."""

    def __init__(self, stages: Sequence[Sequence[Row]], first: int, last: int, style: Style, pixels: Pixels, classes: int) -> None:
        super().__init__()
        self.pixels, self.hard = pixels, style.hard
        self.conv_stem, self.bn1 = style.conv(3, first, 3, 2), style.norm(first)
        before, parts = first, []
        for stage in stages:
            blocks = []
            for row in stage:
                blocks.append(Block(before, row, style))
                before = row.filters
            parts.append(nn.Sequential(*blocks))
        self.blocks, self.conv_head = nn.Sequential(*parts), style.conv(before, last, 1, bias=style.hard)
        if not style.hard:
            self.bn2 = style.norm(last)
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = (x.new_tensor(values).reshape(3, 1, 1) for values in self.pixels)
        act = nn.functional.hardswish if self.hard else nn.functional.silu
        x = self.blocks(act(self.bn1(self.conv_stem((x / 255 - mean) / deviation))))
        if self.hard:
            x = act(self.conv_head(x.mean((2, 3), keepdim=True)))
        else:
            x = act(self.bn2(self.conv_head(x)))
        return self.classifier(x.mean((2, 3)))


def mobilenet_v3(kind: str, tensorflow: bool, side: int, classes: int) -> nn.Module:
    """`mobilenetv3_small_100` and `mobilenetv3_large_100`, and their `tf_` kin."""
    blocks, counts, last = (SMALL, (1, 2, 3, 2, 3), 1024) if kind == "small" else (LARGE, (1, 2, 3, 4, 2, 3), 1280)
    rows = [Row("ir" if number else "ds", size, stride, wide, filters, weighed,
                nn.functional.relu if act is nn.ReLU else nn.functional.hardswish)
            for number, (size, wide, filters, weighed, act, stride) in enumerate(blocks)]
    stages = [rows[sum(counts[:i]):sum(counts[:i + 1])] for i in range(len(counts))]
    end = Row("cn", 1, 1, 0, 6 * rows[-1].filters, act=nn.functional.hardswish)
    style, pixels = (Style(True, 1e-3, True), HALVES) if tensorflow else (Style(False, 1e-5, True), Network.IMAGENET)
    return Timm([*stages, [end]], 16, last, style, pixels, classes)


def efficientnet(width: float, depth: float, side: int, classes: int) -> nn.Module:
    """`tf_efficientnet_b0` to `_b7`."""
    rows = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1))
    before, stages = divisible(32 * width), []
    for expansion, size, stride, filters, count in rows:
        stage, filters = [], divisible(filters * width)
        for i in range(math.ceil(depth * count)):
            stage.append(Row("ds" if expansion == 1 else "ir", size, stride if i == 0 else 1, before * expansion, filters, True))
            before = filters
        stages.append(stage)
    return Timm(stages, divisible(32 * width), divisible(1280 * width), Style(True, 1e-3, False), Network.IMAGENET, classes)


V2: dict[str, Sequence[tuple[str, int, int, int, int]]] = {
    "b": (("cn", 1, 1, 16, 1), ("er", 4, 2, 32, 2), ("er", 4, 2, 48, 2), ("ir", 4, 2, 96, 3), ("ir", 6, 1, 112, 5), ("ir", 6, 2, 192, 8)),
    "s": (("cn", 1, 1, 24, 2), ("er", 4, 2, 48, 4), ("er", 4, 2, 64, 4), ("ir", 4, 2, 128, 6), ("ir", 6, 1, 160, 9), ("ir", 6, 2, 256, 15)),
    "m": (("cn", 1, 1, 24, 3), ("er", 4, 2, 48, 5), ("er", 4, 2, 80, 5), ("ir", 4, 2, 160, 7), ("ir", 6, 1, 176, 14), ("ir", 6, 2, 304, 18),
          ("ir", 6, 1, 512, 5)),
    "l": (("cn", 1, 1, 32, 4), ("er", 4, 2, 64, 7), ("er", 4, 2, 96, 7), ("ir", 4, 2, 192, 10), ("ir", 6, 1, 224, 19),
          ("ir", 6, 2, 384, 25), ("ir", 6, 1, 640, 7)),
}
"""(kind, expansion, stride of the first, filters, blocks)."""


def efficientnet_v2(kind: str, width: float, depth: float, side: int, classes: int) -> nn.Module:
    """`tf_efficientnetv2_b0` to `_b3`, `_s`, `_m` and `_l`."""
    def wide(filters: int) -> int:
        return max(8, int(filters * width + 4) // 8 * 8)

    first = wide({"b": 32, "s": 24, "m": 24, "l": 32}[kind])
    before, stages = first, []
    for block, expansion, stride, filters, count in V2[kind]:
        stage = []
        for i in range(math.ceil(depth * count)):
            stage.append(Row(block, 3, stride if i == 0 else 1, before * expansion, wide(filters), block == "ir"))
            before = wide(filters)
        stages.append(stage)
    return Timm(stages, first, wide(1280), Style(True, 1e-3, False), Network.IMAGENET if kind == "b" else HALVES, classes)
