"""VGG in PyTorch, with torchvision's names and with timm's."""

from collections import OrderedDict

from torch import Tensor, nn


def features(convolutions: tuple[int, ...]) -> nn.Sequential:
    parts: list[nn.Module] = []
    channels = 3
    for count, filters in zip(convolutions, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            parts += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU()]
            channels = filters
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts)


class VGG(nn.Module):
    """Like torchvision's, without the pooling to 7×7, which does nothing to pictures of 224×224."""

    def __init__(self, convolutions: tuple[int, ...], side: int, classes: int) -> None:
        super().__init__()
        self.features = features(convolutions)
        self.classifier = nn.Sequential(nn.Linear(512 * (side // 32) ** 2, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096),
                                        nn.ReLU(), nn.Dropout(), nn.Linear(4096, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Timm(nn.Module):
    """The dense layers are convolutions over the last map, whose means go to the classifier."""

    def __init__(self, convolutions: tuple[int, ...], side: int, classes: int) -> None:
        super().__init__()
        self.features = features(convolutions)
        self.pre_logits = nn.Sequential(OrderedDict(fc1=nn.Conv2d(512, 4096, side // 32), act1=nn.ReLU(), drop=nn.Dropout(0.0),
                                                    fc2=nn.Conv2d(4096, 4096, 1), act2=nn.ReLU()))
        self.head = nn.Module()
        self.head.fc = nn.Linear(4096, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.pre_logits(self.features(x)).mean((2, 3)))
