"""Xception: separable convolutions all the way, with shortcuts."""

from __future__ import annotations

import re

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.variants import Variant, is_torch
from convolt.applications.weights import TorchNames
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["Xception", "decode_predictions", "preprocess_input"]

preprocess_input = preprocessing("tf")


def _relu(x: SymbolicTensor, name: str) -> SymbolicTensor:
    return layers.Activation("relu", name=f"{name}_act")(x)  # type: ignore[no-any-return]


def _separable(x: SymbolicTensor, filters: int, name: str, style: Variant) -> SymbolicTensor:
    x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False, name=name)(x)
    return style.norm(x, f"{name}_bn")


def _halving(x: SymbolicTensor, block: int, filters: tuple[int, int], style: Variant) -> SymbolicTensor:
    """Two separable convolutions and max pooling, beside a convolution 1×1 that halves the picture too."""
    shortcut = layers.Conv2D(filters[1], 1, strides=2, padding="same", use_bias=False)(x)
    shortcut = style.norm(shortcut)
    for i, n in enumerate(filters, start=1):
        name = f"block{block}_sepconv{i}"
        x = _separable(x if block == 2 and i == 1 else _relu(x, name), n, name, style)  # block 1 ends in a ReLU
    if style.torch:  # windows around each second place, cut off at the border
        x = layers.MaxPooling2D(1, strides=2)(layers.MaxPooling2D(3, strides=1, padding="same", name=f"block{block}_pool")(x))
    else:
        x = layers.MaxPooling2D(3, strides=2, padding="same", name=f"block{block}_pool")(x)
    return layers.Add()([x, shortcut])  # type: ignore[no-any-return]


SHORTCUTS = (1, 2, 3, 12)
"""timm's numbers of the blocks with a convolution beside them, which Keras does not name."""
PARTS = {"depthwise_weight": "conv1.weight", "pointwise_weight": "pointwise.weight"}


def _in_block(match: re.Match[str]) -> str:
    """Returns timm's name, by the place in a list of ReLU, convolution and normalization; the first list begins with no ReLU."""
    block, number, norm, weight = int(match[1]), int(match[2]), match[3], match[4]
    place = 3 * (number - 1) + (block > 2) + bool(norm)
    return f"block{block - 1}.rep.{place}.{PARTS.get(weight, weight)}"


TORCH = TorchNames([
    (r"block1_conv([12])\.(.*)", r"conv\1.\2"), (r"block1_conv([12])_bn\.(.*)", r"bn\1.\2"),
    (r"block14_sepconv([12])\.(.*)", lambda m: f"conv{int(m[1]) + 2}.{PARTS[m[2]]}"),
    (r"block14_sepconv([12])_bn\.(.*)", lambda m: f"bn{int(m[1]) + 2}.{m[2]}"),
    (r"block(\d+)_sepconv(\d)(_bn)?\.(.*)", _in_block),
    (r"conv2d(?:_(\d))?\.(.*)", lambda m: f"block{SHORTCUTS[int(m[1] or 0)]}.skip.{m[2]}"),
    (r"batch_normalization(?:_(\d))?\.(.*)", lambda m: f"block{SHORTCUTS[int(m[1] or 0)]}.skipbn.{m[2]}"),
    (r"predictions\.(.*)", r"fc.\1"),
], title="timm", variant="torch", pixels="tf")


@architecture("xception", family="Xception", size=299, smallest=71, pixels="tf", torch=TORCH,
              source="Chollet 2016, https://arxiv.org/abs/1610.02357")
def Xception(frame: Frame, *, variant: str = "keras") -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """Xception; `variant` is "keras" or "torch" (timm's `legacy_xception`). Keras counterpart: `keras.applications.Xception`."""
    torch, x = is_torch("Xception", variant), frame.x
    style = Variant(torch, 0.9, 1e-5) if torch else Variant(torch, 0.99)
    for name, filters, strides in (("block1_conv1", 32, 2), ("block1_conv2", 64, 1)):
        x = layers.Conv2D(filters, 3, strides=strides, use_bias=False, name=name)(x)
        x = _relu(style.norm(x, f"{name}_bn"), name)
    for block, filters in enumerate((128, 256, 728), start=2):
        x = _halving(x, block, (filters, filters), style)
    for block in range(5, 13):
        before = x
        for i in (1, 2, 3):
            name = f"block{block}_sepconv{i}"
            x = _separable(_relu(x, name), 728, name, style)
        x = layers.Add()([x, before])
    x = _halving(x, 13, (728, 1024), style)
    for name, filters in (("block14_sepconv1", 1536), ("block14_sepconv2", 2048)):
        x = _relu(_separable(x, filters, name, style), name)
    return frame.top(x)
