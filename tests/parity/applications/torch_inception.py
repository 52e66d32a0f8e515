"""Inception v3 in PyTorch with torchvision's names, Inception-ResNet v2 with timm's; pixels -1 … 1 go in, as into ours."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, int]


class BasicConv2d(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False), nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def half(size: Size) -> Size:
    return size // 2 if isinstance(size, int) else (size[0] // 2, size[1] // 2)


class InceptionBlock(nn.Module):
    """Branches given as (name, outputs, size, stride) of each convolution; the last of a list of names stand side by side."""

    def __init__(self, inputs: int, branches: Sequence[Sequence[tuple[str, int, Size, int]]], pooled: int | None) -> None:
        super().__init__()
        self.branches, self.pooled = [[name for name, *_ in branch] for branch in branches], pooled
        for branch in branches:
            channels = inputs
            for name, outputs, size, stride in branch:
                setattr(self, name, BasicConv2d(channels, outputs, size, stride, 0 if stride == 2 else half(size)))
                channels = channels if name.endswith("a") else outputs  # a row and a column get the same input
        if pooled:
            self.branch_pool = BasicConv2d(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for names in self.branches:
            y = x
            for name in names[:-2] if names[-1].endswith("b") else names:
                y = getattr(self, name)(y)
            outputs += [getattr(self, name)(y) for name in names[-2:]] if names[-1].endswith("b") else [y]
        if self.pooled:
            outputs.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1)))
        else:
            outputs.append(F.max_pool2d(x, 3, 2))
        return torch.cat(outputs, 1)


def block_a(inputs: int, pooled: int) -> nn.Module:
    return InceptionBlock(inputs, [[("branch1x1", 64, 1, 1)], [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)],
                                   [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)]], pooled)


def block_c(n: int) -> nn.Module:
    sizes = ((7, 1), (1, 7), (7, 1), (1, 7))
    return InceptionBlock(768, [
        [("branch1x1", 192, 1, 1)], [("branch7x7_1", n, 1, 1), ("branch7x7_2", n, (1, 7), 1), ("branch7x7_3", 192, (7, 1), 1)],
        [("branch7x7dbl_1", n, 1, 1), *((f"branch7x7dbl_{i}", 192 if i == 5 else n, size, 1) for i, size in enumerate(sizes, start=2))],
    ], 192)


def block_e(inputs: int) -> nn.Module:
    return InceptionBlock(inputs, [
        [("branch1x1", 320, 1, 1)],
        [("branch3x3_1", 384, 1, 1), ("branch3x3_2a", 384, (1, 3), 1), ("branch3x3_2b", 384, (3, 1), 1)],
        [("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 1), ("branch3x3dbl_3a", 384, (1, 3), 1),
         ("branch3x3dbl_3b", 384, (3, 1), 1)]], 192)


class InceptionV3(nn.Module):
    """With the classifier in the middle, of which evaluation sees nothing."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = BasicConv2d(3, 32, 3, 2), BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = BasicConv2d(32, 64, 3, 1, 1), BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a = InceptionBlock(288, [[("branch3x3", 384, 3, 2)], [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1),
                                                                         ("branch3x3dbl_3", 96, 3, 2)]], None)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = block_c(128), block_c(160), block_c(160), block_c(192)
        self.AuxLogits = nn.Module()
        self.AuxLogits.conv0, self.AuxLogits.conv1 = BasicConv2d(768, 128, 1), BasicConv2d(128, 768, 5)
        self.AuxLogits.fc = nn.Linear(768, classes)
        self.Mixed_7a = InceptionBlock(768, [[("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)], [
            ("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, (1, 7), 1), ("branch7x7x3_3", 192, (7, 1), 1),
            ("branch7x7x3_4", 192, 3, 2)]], None)
        self.Mixed_7b, self.Mixed_7c, self.fc = block_e(1280), block_e(2048), nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return self.fc(x.mean((2, 3)))


def branch(inputs: int, *parts: tuple[int, Size] | tuple[int, Size, int]) -> nn.Module:
    """One convolution, or several in a row."""
    convolutions = []
    for outputs, size, *stride in parts:
        convolutions.append(BasicConv2d(inputs, outputs, size, *(stride or (1, half(size)))))
        inputs = outputs
    return convolutions[0] if len(parts) == 1 else nn.Sequential(*convolutions)


class Residual(nn.Module):
    def __init__(self, channels: int, branches: Sequence[Sequence[tuple[int, Size]]], scale: float, relu: bool = True) -> None:
        super().__init__()
        self.scale, self.relu = scale, relu
        for i, parts in enumerate(branches):
            setattr(self, f"branch{i}", branch(channels, *parts))
        self.count, self.conv2d = len(branches), nn.Conv2d(sum(parts[-1][0] for parts in branches), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2d(torch.cat([getattr(self, f"branch{i}")(x) for i in range(self.count)], 1)) * self.scale + x
        return y.relu() if self.relu else y


class Mixed(nn.Module):
    """Branches, and pooling, side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        for i, module in enumerate(branches):
            setattr(self, f"branch{i}", module)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([module(x) for module in self.children()], 1)


class InceptionResNetV2(nn.Module):
    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.conv2d_1a, self.conv2d_2a, self.conv2d_2b = BasicConv2d(3, 32, 3, 2), BasicConv2d(32, 32, 3), BasicConv2d(32, 64, 3, 1, 1)
        self.conv2d_3b, self.conv2d_4a = BasicConv2d(64, 80, 1), BasicConv2d(80, 192, 3)
        self.mixed_5b = Mixed(branch(192, (96, 1)), branch(192, (48, 1), (64, 5)), branch(192, (64, 1), (96, 3), (96, 3)),
                              nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), branch(192, (64, 1))))
        blocks = (320, [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]], 0.17), \
            (1088, [[(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]], 0.1), \
            (2080, [[(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]], 0.2)
        self.repeat, self.repeat_1, self.repeat_2 = (nn.Sequential(*[Residual(*block) for _ in range(count)])
                                                     for block, count in zip(blocks, (10, 20, 9), strict=True))
        self.mixed_6a = Mixed(branch(320, (384, 3, 2)), branch(320, (256, 1), (256, 3), (384, 3, 2)), nn.MaxPool2d(3, 2))
        self.mixed_7a = Mixed(branch(1088, (256, 1), (384, 3, 2)), branch(1088, (256, 1), (288, 3, 2)),
                              branch(1088, (256, 1), (288, 3), (320, 3, 2)), nn.MaxPool2d(3, 2))
        self.block8 = Residual(2080, blocks[2][1], 1.0, relu=False)
        self.conv2d_7b, self.classif = BasicConv2d(2080, 1536, 1), nn.Linear(1536, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x))), 3, 2)
        x = self.repeat(self.mixed_5b(F.max_pool2d(self.conv2d_4a(self.conv2d_3b(x)), 3, 2)))
        x = self.block8(self.repeat_2(self.mixed_7a(self.repeat_1(self.mixed_6a(x)))))
        return self.classif(self.conv2d_7b(x).mean((2, 3)))
