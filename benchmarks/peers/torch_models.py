"""The networks in plain PyTorch, channels first, with Keras's definitions and initial weights. They return logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Basic(nn.Module):
    """ResNet-18's block."""

    def __init__(self, before: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False), nn.BatchNorm2d(filters)
        shrink = nn.Sequential(nn.Conv2d(before, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))
        self.short = shrink if stride != 1 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + self.short(x))


class Bottleneck(nn.Module):
    """ResNet-50's block as Keras has it: the stride in the first convolution, biases in all."""

    def __init__(self, before: int, filters: int, stride: int, shrink: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, filters, 1, stride), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = nn.Conv2d(filters, filters, 3, 1, 1), nn.BatchNorm2d(filters)
        self.conv3, self.bn3 = nn.Conv2d(filters, 4 * filters, 1), nn.BatchNorm2d(4 * filters)
        short = nn.Sequential(nn.Conv2d(before, 4 * filters, 1, stride), nn.BatchNorm2d(4 * filters))
        self.short = short if shrink else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.relu(self.bn3(self.conv3(y)) + self.short(x))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1600, 64), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(64, 10),
    )  # fmt: skip


def resnet18() -> nn.Module:
    blocks, before = [], 64
    for filters, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        blocks.append(Basic(before, filters, stride))
        before = filters
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def resnet50() -> nn.Module:
    blocks, before = [], 64
    for filters, count, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            blocks.append(Bottleneck(before, filters, first if number == 0 else 1, shrink=number == 0))
            before = 4 * filters
    return nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    before = 3
    for filters, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(before, filters, 3, 1, 1), nn.ReLU(inplace=True)]
            before = filters
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True), nn.Linear(4096, 4096),
                         nn.ReLU(inplace=True), nn.Linear(4096, 1000))


NETWORKS = {"cnn": cnn, "resnet18": resnet18, "resnet50": resnet50, "vgg16": vgg16}


def build(work: Any) -> nn.Module:
    """Returns a workload's network with Keras's initial weights; for the zoo Convolt's own model, which is a PyTorch module."""
    if work.zoo:
        import convolt

        return getattr(convolt.applications, work.network)(weights=None, input_shape=work.shape, classifier_activation=None)
    model = NETWORKS[work.network]()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.01  # Keras's 0.99
    return model


def parameters(model: nn.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())


@torch.inference_mode()
def accuracy(model: Any, x: torch.Tensor, y: torch.Tensor, bfloat16: bool) -> float:
    """Returns the accuracy on pictures, channels first, in batches of 1,000; leaves the model in training mode."""
    model.eval()
    right = torch.zeros((), device=x.device)
    for pictures, labels in zip(x.split(1000), y.split(1000), strict=True):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            right += (model(pictures).argmax(1) == labels).sum()
    model.train()
    return right.item() / len(x)
