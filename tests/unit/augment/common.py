"""Pictures, keys, and one of each transform: what the tests of augmentation share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convolt.data import augment as A

SIZE = 24


def keys(count: int = 6, epoch: int = 0) -> Tensor:
    return A.keys(3, epoch, torch.arange(count))


def smooth_pictures(count: int = 6, size: int = SIZE, channels: int = 3, margin: float = 6.0) -> Tensor:
    """Slow waves on black, which fade out before the border: interpolation errs little, and nothing is cut off."""
    y, x = torch.meshgrid(torch.arange(size, dtype=torch.float32), torch.arange(size, dtype=torch.float32), indexing="ij")
    centre = (size - 1) / 2
    fade = torch.exp(-(((x - centre).square() + (y - centre).square()) / margin**2))
    waves = [torch.sin(0.25 * x * (1 + 0.1 * n) + 0.2 * y + c) for n in range(count) for c in range(channels)]
    return ((torch.stack(waves).view(count, channels, size, size).movedim(1, -1) + 1) / 2 * fade[None, :, :, None]).contiguous()


def bytes_of(count: int = 6, size: int = SIZE, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, size, size + 2, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def changed(transforms: Any, x: Tensor, k: Tensor | None = None, **arguments: Any) -> Tensor:
    return A.Augmentation(transforms, **arguments).apply(x, None, keys(len(x)) if k is None else k).images


EVERY: list[A.Transform] = [
    A.RandomFlip(), A.RandomRotation(30), A.RandomShear(0.2, 0.1), A.RandomZoom(0.2), A.RandomZoom((-0.3, 0.1), (0.0, 0.2)),
    A.RandomTranslation(0.2, 0.1), A.RandomTranslation(0.2, 0.1, whole_pixels=True), A.RandomCrop(16, 12), A.RandomCrop(26, padding=2),
    A.CenterCrop(10), A.Resize(9, 30), A.RandomResizedCrop(8), A.RandomPerspective(0.4), A.RandomBrightness(0.2), A.RandomLightness(0.2),
    A.RandomContrast(0.3), A.RandomSaturation(0.5), A.RandomHue(0.2), A.RandomChannelShift(0.1), A.RandomGrayscale(), A.RandomInvert(),
    A.Cutout(5), A.Cutout(0.3, fill_value=(1, 2, 3)), A.RandomErasing(), A.RandomNoise(0.1), A.RandomBlur(1.5), A.MixUp(), A.CutMix(),
    A.Normalize((1, 2, 3), 4.0), A.Rescale(), A.AlternatingFlip(), A.ProgressiveResizing(8, 30, 4), A.TrivialAugment(), A.RandAugment(),
    A.RandAugment(3, 25)]
