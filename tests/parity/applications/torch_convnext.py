"""ConvNeXt in PyTorch, with timm's names and with torchvision's; pixels 0 … 255 go in, as into ours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.LayerNorm):
    """Layer normalization of the channels at index 1."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Mlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 0.5))
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.mlp = nn.LayerNorm(channels, eps=1e-6), Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).movedim(1, -1)))
        return x + (y * self.gamma).movedim(-1, 1)


class Stage(nn.Module):
    def __init__(self, before: int, channels: int, depth: int, halve: bool) -> None:
        super().__init__()
        self.downsample = nn.Sequential(Norm(before), nn.Conv2d(before, channels, 2, 2)) if halve else nn.Identity()
        self.blocks = nn.Sequential(*[Block(channels) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Head(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.mean((2, 3))))


def seen(x: Tensor) -> Tensor:
    """Pixels 0 … 255 with mean 0 and deviation 1 over ImageNet."""
    mean, deviation = (x.new_tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (x / 255 - mean) / deviation


class Timm(nn.Module):
    def __init__(self, depths: tuple[int, ...], filters: tuple[int, ...], side: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, filters[0], 4, 4), Norm(filters[0]))
        before = (filters[0], *filters)
        self.stages = nn.Sequential(*[Stage(before[i], n, depth, i > 0) for i, (depth, n) in enumerate(zip(depths, filters, strict=True))])
        self.head = Head(filters[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(seen(x))))


class Moved(nn.Module):
    """An axis at another place."""

    def __init__(self, source: int, destination: int) -> None:
        super().__init__()
        self.source, self.destination = source, destination

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.source, self.destination)


class CNBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))
        self.block = nn.Sequential(nn.Conv2d(channels, channels, 7, padding=3, groups=channels), Moved(1, -1),
                                   nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, 4 * channels), nn.GELU(),
                                   nn.Linear(4 * channels, channels), Moved(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * self.block(x)


class Torchvision(nn.Module):
    def __init__(self, depths: tuple[int, ...], filters: tuple[int, ...], side: int, classes: int) -> None:
        super().__init__()
        parts = [nn.Sequential(nn.Conv2d(3, filters[0], 4, 4), Norm(filters[0]))]
        for i, (depth, channels) in enumerate(zip(depths, filters, strict=True)):
            if i:
                parts.append(nn.Sequential(Norm(filters[i - 1]), nn.Conv2d(filters[i - 1], channels, 2, 2)))
            parts.append(nn.Sequential(*[CNBlock(channels) for _ in range(depth)]))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(Norm(filters[-1]), nn.Flatten(), nn.Linear(filters[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(seen(x)).mean((2, 3), keepdim=True))
