"""MobileNets and EfficientNets in PyTorch, with torchvision's names."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from convolt.applications.mobilenet_v2 import divisible


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, *, eps: float = 1e-5,
         act: Callable[[], nn.Module] | None = nn.SiLU) -> nn.Sequential:
    parts = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs, eps=eps)]
    return nn.Sequential(*parts, *([] if act is None else [act()]))


class Weigher(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, squeezed: int, act: Callable[[], nn.Module], gate: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc1, self.activation = nn.Conv2d(channels, squeezed, 1), act()
        self.fc2, self.scale_activation = nn.Conv2d(squeezed, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_activation(self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True)))))


class Residual(nn.Module):
    """A block under the name that the network has for it, with a shortcut where shapes allow one."""

    def __init__(self, name: str, parts: Sequence[nn.Module], shortcut: bool) -> None:
        super().__init__()
        self.parts, self.shortcut = name, shortcut
        setattr(self, name, nn.Sequential(*parts))

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(self, self.parts)(x)
        return x + y if self.shortcut else y


class Network(nn.Module):
    """Features, their means, a classifier; `mean` and `deviation` where pixels 0 … 255 go in, as into ours."""

    mean, deviation = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, features: Sequence[nn.Module], classifier: Sequence[nn.Module]) -> None:
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

    def forward(self, x: Tensor) -> Tensor:
        if self.deviation != (1.0, 1.0, 1.0):
            x = (x / 255 - x.new_tensor(self.mean).reshape(3, 1, 1)) / x.new_tensor(self.deviation).reshape(3, 1, 1)
        return self.classifier(self.features(x).mean((2, 3)))


class MobileNetV2(Network):
    def __init__(self, side: int, classes: int) -> None:
        parts: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.ReLU6)]
        before = 32
        for expansion, filters, count, stride in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
                                                  (6, 320, 1, 1)):
            for i in range(count):
                wide, step = before * expansion, stride if i == 0 else 1
                inner = [] if expansion == 1 else [conv(before, wide, 1, act=nn.ReLU6)]
                inner += [conv(wide, wide, 3, step, wide, act=nn.ReLU6), nn.Conv2d(wide, filters, 1, bias=False), nn.BatchNorm2d(filters)]
                parts.append(Residual("conv", inner, step == 1 and before == filters))
                before = filters
        super().__init__([*parts, conv(320, 1280, 1, act=nn.ReLU6)], [nn.Dropout(0.2), nn.Linear(1280, classes)])


RE, HS = nn.ReLU, nn.Hardswish
SMALL = (
    (3, 16, 16, True, RE, 2), (3, 72, 24, False, RE, 2), (3, 88, 24, False, RE, 1),
    (5, 96, 40, True, HS, 2), (5, 240, 40, True, HS, 1), (5, 240, 40, True, HS, 1), (5, 120, 48, True, HS, 1), (5, 144, 48, True, HS, 1),
    (5, 288, 96, True, HS, 2), (5, 576, 96, True, HS, 1), (5, 576, 96, True, HS, 1))
LARGE = (
    (3, 16, 16, False, RE, 1), (3, 64, 24, False, RE, 2), (3, 72, 24, False, RE, 1),
    (5, 72, 40, True, RE, 2), (5, 120, 40, True, RE, 1), (5, 120, 40, True, RE, 1),
    (3, 240, 80, False, HS, 2), (3, 200, 80, False, HS, 1), (3, 184, 80, False, HS, 1), (3, 184, 80, False, HS, 1),
    (3, 480, 112, True, HS, 1), (3, 672, 112, True, HS, 1),
    (5, 672, 160, True, HS, 2), (5, 960, 160, True, HS, 1), (5, 960, 160, True, HS, 1))
"""(kernel size, expanded channels, filters, whether channels are weighed, activation, stride)."""


class MobileNetV3(Network):
    def __init__(self, blocks: Sequence[tuple[int, int, int, bool, Callable[[], nn.Module], int]], last: int, side: int,
                 classes: int) -> None:
        parts: list[nn.Module] = [conv(3, 16, 3, 2, eps=1e-3, act=HS)]
        before = 16
        for size, wide, filters, weighed, act, stride in blocks:
            inner = [conv(before, wide, 1, eps=1e-3, act=act)] if wide != before else []
            inner.append(conv(wide, wide, size, stride, wide, eps=1e-3, act=act))
            if weighed:
                inner.append(Weigher(wide, divisible(wide // 4), nn.ReLU, nn.Hardsigmoid))
            inner.append(conv(wide, filters, 1, eps=1e-3, act=None))
            parts.append(Residual("block", inner, stride == 1 and before == filters))
            before = filters
        parts.append(conv(before, 6 * before, 1, eps=1e-3, act=HS))
        super().__init__(parts, [nn.Linear(6 * before, last), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(last, classes)])
        self.mean, self.deviation = self.IMAGENET


def expanding(before: int, expansion: int, size: int, filters: int, stride: int, eps: float) -> nn.Module:
    """MBConv of torchvision."""
    wide = before * expansion
    inner = [conv(before, wide, 1, eps=eps)] if expansion != 1 else []
    inner += [conv(wide, wide, size, stride, wide, eps=eps), Weigher(wide, max(1, before // 4), nn.SiLU, nn.Sigmoid),
              conv(wide, filters, 1, eps=eps, act=None)]
    return Residual("block", inner, stride == 1 and before == filters)


def fused(before: int, expansion: int, size: int, filters: int, stride: int, eps: float) -> nn.Module:
    """FusedMBConv of torchvision."""
    wide = before * expansion
    inner = [conv(before, wide, size, stride, eps=eps)] + ([conv(wide, filters, 1, eps=eps, act=None)] if expansion != 1 else [])
    return Residual("block", inner, stride == 1 and before == filters)


Kind = Callable[[int, int, int, int, int, float], nn.Module]
STAGES: Sequence[tuple[Kind, int, int, int, int, int]] = tuple((expanding, *row) for row in (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)))
V2_STAGES: dict[str, Sequence[tuple[Kind, int, int, int, int, int]]] = {
    "S": ((fused, 1, 3, 1, 24, 2), (fused, 4, 3, 2, 48, 4), (fused, 4, 3, 2, 64, 4), (expanding, 4, 3, 2, 128, 6),
          (expanding, 6, 3, 1, 160, 9), (expanding, 6, 3, 2, 256, 15)),
    "M": ((fused, 1, 3, 1, 24, 3), (fused, 4, 3, 2, 48, 5), (fused, 4, 3, 2, 80, 5), (expanding, 4, 3, 2, 160, 7),
          (expanding, 6, 3, 1, 176, 14), (expanding, 6, 3, 2, 304, 18), (expanding, 6, 3, 1, 512, 5)),
    "L": ((fused, 1, 3, 1, 32, 4), (fused, 4, 3, 2, 64, 7), (fused, 4, 3, 2, 96, 7), (expanding, 4, 3, 2, 192, 10),
          (expanding, 6, 3, 1, 224, 19), (expanding, 6, 3, 2, 384, 25), (expanding, 6, 3, 1, 640, 7)),
}
"""(kind of block, expansion, kernel size, stride of the first, filters, blocks)."""


class EfficientNet(Network):
    def __init__(self, stages: Sequence[tuple[Kind, int, int, int, int, int]], first: int, last: int | None, dropout: float, eps: float,
                 side: int, classes: int) -> None:
        parts: list[nn.Module] = [conv(3, first, 3, 2, eps=eps)]
        before = first
        for kind, expansion, size, stride, filters, count in stages:
            blocks = []
            for i in range(count):
                blocks.append(kind(before, expansion, size, filters, stride if i == 0 else 1, eps))
                before = filters
            parts.append(nn.Sequential(*blocks))
        last = last or 4 * before
        super().__init__([*parts, conv(before, last, 1, eps=eps)], [nn.Dropout(dropout), nn.Linear(last, classes)])
        self.mean, self.deviation = self.IMAGENET


def efficientnet(width: float, depth: float, dropout: float, eps: float, side: int, classes: int) -> nn.Module:
    stages = [(*rest, divisible(filters * width), math.ceil(depth * count)) for *rest, filters, count in STAGES]
    return EfficientNet(stages, divisible(32 * width), None, dropout, eps, side, classes)  # type: ignore[arg-type]


def efficientnet_v2(kind: str, side: int, classes: int) -> nn.Module:
    network = EfficientNet(V2_STAGES[kind], V2_STAGES[kind][0][4], 1280, 0.2, 1e-3, side, classes)
    if kind == "L":
        network.mean, network.deviation = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return network
