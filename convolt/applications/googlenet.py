"""GoogLeNet: the first network of Inception blocks, as torchvision has it: with batch normalization, 3×3 in place of 5×5."""

from __future__ import annotations

import re

from torch import Tensor

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.weights import TorchNames
from convolt.layers.symbolic import SymbolicTensor
from convolt.models import Model

__all__ = ["GoogLeNet", "decode_predictions", "preprocess_input"]

BLOCKS = (
    ("3a", 64, (96, 128), (16, 32), 32), ("3b", 128, (128, 192), (32, 96), 64),
    ("4a", 192, (96, 208), (16, 48), 64), ("4b", 160, (112, 224), (24, 64), 64), ("4c", 128, (128, 256), (24, 64), 64),
    ("4d", 112, (144, 288), (32, 64), 64), ("4e", 256, (160, 320), (32, 128), 128),
    ("5a", 256, (160, 320), (32, 128), 128), ("5b", 384, (192, 384), (48, 128), 128))
"""(name, filters 1×1, two branches of 1×1 then 3×3, filters 1×1 after pooling)."""

POOLS = {"4a": 3, "5a": 2}
"""Block → size of the pooling before it."""

preprocess_input = preprocessing("tf")


def _without_helpers(tensors: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Drops the two classifiers in the middle, which only training needed."""
    return {name: tensor for name, tensor in tensors.items() if not re.match(r"aux[12]\.", name)}


TORCH = TorchNames([
    (r"conv([123])_(conv|bn)\.(.*)", r"conv\1.\2.\3"),
    (r"inception(\d[a-e])_branch1_(conv|bn)\.(.*)", r"inception\1.branch1.\2.\3"),
    (r"inception(\d[a-e])_branch([234])_([01])_(conv|bn)\.(.*)", r"inception\1.branch\2.\3.\4.\5"),
    (r"predictions\.(.*)", r"fc.\1"),
], prepare=_without_helpers, pixels="tf")  # torchvision's network itself brings ImageNet's scale to -1 … 1


def _convolution(x: SymbolicTensor, filters: int, size: int, name: str) -> SymbolicTensor:
    x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return _rectified(x, name)


def _rectified(x: SymbolicTensor, name: str) -> SymbolicTensor:
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x))  # type: ignore[no-any-return]


def _inception(x: SymbolicTensor, name: str, single: int, second: tuple[int, int], third: tuple[int, int], pooled: int) -> SymbolicTensor:
    outputs = [_convolution(x, single, 1, f"{name}_branch1")]
    for branch, (narrow, filters) in enumerate((second, third), start=2):
        y = _convolution(x, narrow, 1, f"{name}_branch{branch}_0")
        outputs.append(_convolution(y, filters, 3, f"{name}_branch{branch}_1"))
    y = layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_pool")(x)
    outputs.append(_convolution(y, pooled, 1, f"{name}_branch4_1"))
    return layers.Concatenate(name=f"{name}_concat")(outputs)  # type: ignore[no-any-return]


@architecture("googlenet", family="Inception", pixels="tf", torch=TORCH,
              source="Szegedy et al. 2014, https://arxiv.org/abs/1409.4842; torchvision")
def GoogLeNet(frame: Frame, *, dropout: float = 0.2, stem: str = "large") -> SymbolicTensor:  # noqa: N802 (the paper's name)
    """GoogLeNet without its two classifiers in the middle; for sides that are multiples of 32 it is torchvision's to the last window.

    `stem` is "large", "small" (for 32×32: 3×3 in place of 7×7 and pooling) or "auto".
    PyTorch counterpart: `torchvision.models.googlenet`, whose pixels "transform_input" brings to -1 … 1.
    """
    if frame.is_small("GoogLeNet", stem):
        x = _convolution(frame.x, 64, 3, "conv1")
    else:
        x = layers.ZeroPadding2D(3, name="conv1_pad")(frame.x)
        x = _rectified(layers.Conv2D(64, 7, strides=2, use_bias=False, name="conv1_conv")(x), "conv1")
        x = layers.MaxPooling2D(3, strides=2, padding="same", name="pool1")(x)
    x = _convolution(_convolution(x, 64, 1, "conv2"), 192, 3, "conv3")
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="pool2")(x)
    for name, single, second, third, pooled in BLOCKS:
        if name in POOLS:
            x = layers.MaxPooling2D(POOLS[name], strides=2, padding="same", name=f"pool{name[0]}")(x)
        x = _inception(x, f"inception{name}", single, second, third, pooled)
    return frame.top(x, dropout=dropout)
