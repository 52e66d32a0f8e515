"""LeNet-5, AlexNet, SqueezeNet and U-Net in PyTorch, with the names of torchvision where it has them."""

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * ((side - 12) // 4) ** 2, 120), nn.Linear(120, 84), nn.Linear(84, classes)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv2(self.pool(self.conv1(x).tanh())).tanh())
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).tanh()).tanh())


class AlexNet(nn.Module):
    """Like torchvision's, without the pooling to 6×6, which does nothing to pictures of 224×224."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2))
        with torch.no_grad():
            size = self.features(torch.zeros(1, 3, side, side)).numel()
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(size, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(),
                                        nn.Linear(4096, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet(nn.Module):
    def __init__(self, version: str, side: int, classes: int) -> None:
        super().__init__()
        first, pools = (nn.Conv2d(3, 96, 7, 2), (0, 3, 7)) if version == "1_0" else (nn.Conv2d(3, 64, 3, 2), (0, 2, 4))
        parts: list[nn.Module] = [first, nn.ReLU()]
        channels = first.out_channels
        for i, expand in enumerate((64, 64, 128, 128, 192, 192, 256, 256)):
            if i in pools:
                parts.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            parts.append(Fire(channels, expand // 4, expand))
            channels = 2 * expand
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).flatten(1)


class Double(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
                                         nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), Double(inputs, 2 * inputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(inputs, inputs // 2, 2, 2), Double(inputs, inputs // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([skip, self.up(x)], 1))


class UNet(nn.Module):
    """With the names of Pytorch-UNet."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.inc = Double(3, 64)
        self.down1, self.down2, self.down3, self.down4 = Down(64), Down(128), Down(256), Down(512)
        self.up1, self.up2, self.up3, self.up4 = Up(1024), Up(512), Up(256), Up(128)
        self.outc = nn.Module()
        self.outc.conv = nn.Conv2d(64, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.inc(x)
        b = self.down1(a)
        c = self.down2(b)
        d = self.down3(c)
        return self.outc.conv(self.up4(self.up3(self.up2(self.up1(self.down4(d), d), c), b), a))
