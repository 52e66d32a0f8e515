"""VGG in PyTorch, with torchvision's names."""

from torch import Tensor, nn


class VGG(nn.Module):
    """Like torchvision's, without the pooling to 7×7, which does nothing to pictures of 224×224."""

    def __init__(self, convolutions: tuple[int, ...], side: int, classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = 3
        for count, filters in zip(convolutions, (64, 128, 256, 512, 512), strict=True):
            for _ in range(count):
                parts += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU()]
                channels = filters
            parts.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Linear(512 * (side // 32) ** 2, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096),
                                        nn.ReLU(), nn.Dropout(), nn.Linear(4096, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
