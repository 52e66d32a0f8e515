"""DenseNet in PyTorch, with torchvision's names."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


class DenseLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 128, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    def __init__(self, counts: tuple[int, ...], side: int, classes: int) -> None:
        super().__init__()
        parts: list[tuple[str, nn.Module]] = [("conv0", nn.Conv2d(3, 64, 7, 2, 3, bias=False)), ("norm0", nn.BatchNorm2d(64)),
                                              ("relu0", nn.ReLU()), ("pool0", nn.MaxPool2d(3, 2, 1))]
        channels = 64
        for block, count in enumerate(counts, start=1):
            inside = [(f"denselayer{i + 1}", DenseLayer(channels + 32 * i)) for i in range(count)]
            parts.append((f"denseblock{block}", nn.Sequential(OrderedDict(inside))))
            channels += 32 * count
            if block < len(counts):
                transition = OrderedDict(norm=nn.BatchNorm2d(channels), relu=nn.ReLU(),
                                         conv=nn.Conv2d(channels, channels // 2, 1, bias=False), pool=nn.AvgPool2d(2))
                parts.append((f"transition{block}", nn.Sequential(transition)))
                channels //= 2
        self.features = nn.Sequential(OrderedDict([*parts, ("norm5", nn.BatchNorm2d(channels))]))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.features(x)).mean((2, 3)))
