"""GoogLeNet in PyTorch, with torchvision's names (without the classifiers in the middle, whose weights are left over)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

BLOCKS = {"3a": (192, 64, 96, 128, 16, 32, 32), "3b": (256, 128, 128, 192, 32, 96, 64), "4a": (480, 192, 96, 208, 16, 48, 64),
          "4b": (512, 160, 112, 224, 24, 64, 64), "4c": (512, 128, 128, 256, 24, 64, 64), "4d": (512, 112, 144, 288, 32, 64, 64),
          "4e": (528, 256, 160, 320, 32, 128, 128), "5a": (832, 256, 160, 320, 32, 128, 128), "5b": (832, 384, 192, 384, 48, 128, 128)}


def convolution(channels: int, filters: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, filters, size, stride, size // 2, bias=False),
                                     bn=nn.BatchNorm2d(filters, eps=1e-3), relu=nn.ReLU()))


class Inception(nn.Module):
    def __init__(self, channels: int, one: int, narrow: int, two: int, narrower: int, three: int, pooled: int) -> None:
        super().__init__()
        self.branch1 = convolution(channels, one, 1)
        self.branch2 = nn.Sequential(convolution(channels, narrow, 1), convolution(narrow, two, 3))
        self.branch3 = nn.Sequential(convolution(channels, narrower, 1), convolution(narrower, three, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), convolution(channels, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = convolution(3, 64, 7, 2), convolution(64, 64, 1), convolution(64, 192, 3)
        for name, sizes in BLOCKS.items():
            self.add_module(f"inception{name}", Inception(*sizes))
        self.fc = nn.Linear(1024, classes)
        self.aux1 = nn.Linear(2, 2)  # stands for the classifiers in the middle

    def forward(self, x: Tensor) -> Tensor:
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        x = pool(self.conv3(self.conv2(pool(self.conv1(x)))))
        for name in BLOCKS:
            x = {"4a": pool, "5a": nn.MaxPool2d(2, 2, ceil_mode=True)}.get(name, nn.Identity())(x)
            x = self.get_submodule(f"inception{name}")(x)
        return self.fc(x.mean((2, 3)))
