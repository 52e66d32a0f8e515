"""Inception-ResNet v2: blocks of Inception whose result, scaled down, is added to their input."""

from __future__ import annotations

import re

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.inception_v3 import Blocks, Branch, by_order
from convolt.applications.variants import is_torch
from convolt.applications.weights import TorchNames
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["InceptionResNetV2", "decode_predictions", "preprocess_input"]

BLOCKS: dict[str, tuple[Branch, ...]] = {
    "block35": ([(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]),
    "block17": ([(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]),
    "block8": ([(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]),
}

REPEATS = {"35": "repeat", "17": "repeat_1", "8": "repeat_2"}
"""Kind of a block → timm's list of them; the last of the third kind stands alone."""

preprocess_input = preprocessing("tf")


def _torch_modules() -> list[str]:
    """Returns timm's names of the unnamed convolutions, in the order of the calls."""
    blocks = {"mixed_5b": (1, 2, 3), **{f"repeat.{i}": (1, 2, 3) for i in range(10)}, "mixed_6a": (1, 3),
              **{f"repeat_1.{i}": (1, 3) for i in range(20)}, "mixed_7a": (2, 2, 3),
              **{f"repeat_2.{i}": (1, 3) for i in range(9)}, "block8": (1, 3)}
    names = ["conv2d_1a", "conv2d_2a", "conv2d_2b", "conv2d_3b", "conv2d_4a"]
    for block, lengths in blocks.items():
        for branch, length in enumerate(lengths):
            names += [f"{block}.branch{branch}"] if length == 1 else [f"{block}.branch{branch}.{i}" for i in range(length)]
        names += [f"{block}.branch3.1"] if block == "mixed_5b" else []  # after its pooling
    return names


def _repeated(match: re.Match[str]) -> str:
    """Returns timm's name of the convolution that ends a block."""
    kind, index = REPEATS[match[1]], int(match[2])
    return f"block8.conv2d.{match[3]}" if match[1] == "8" and index == 10 else f"{kind}.{index - 1}.conv2d.{match[3]}"


TORCH = TorchNames([
    *by_order(_torch_modules()), (r"block(35|17|8)_(\d+)_conv\.(.*)", _repeated), (r"conv_7b\.(.*)", r"conv2d_7b.conv.\1"),
    (r"conv_7b_bn\.(.*)", r"conv2d_7b.bn.\1"), (r"predictions\.(.*)", r"classif.\1"),
], title="timm", head=r"classif\..*", variant="torch", pixels="tf")


def _residual(blocks: Blocks, x: SymbolicTensor, kind: str, index: int, scale: float, relu: bool = True) -> SymbolicTensor:
    name = f"{kind}_{index}"
    y = layers.Concatenate(name=f"{name}_mixed")([blocks.chain(x, branch) for branch in BLOCKS[kind]])
    y = layers.Conv2D(x.shape[-1], 1, padding="same", name=f"{name}_conv")(y)  # type: ignore[arg-type]
    x = x + scale * y
    return layers.Activation("relu", name=f"{name}_ac")(x) if relu else x


@architecture("inception_resnet_v2", family="Inception", size=299, smallest=75, pixels="tf", torch=TORCH,
              source="Szegedy et al. 2016, https://arxiv.org/abs/1602.07261")
def InceptionResNetV2(frame: Frame, *, variant: str = "keras") -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """Inception-ResNet v2; `variant` is "keras" or "torch" (timm). Keras counterpart: `keras.applications.InceptionResNetV2`."""
    blocks = Blocks(is_torch("InceptionResNetV2", variant))
    x = blocks.mixed(blocks.stem(frame.x), "mixed_5b", [[(96, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)]], 64)
    for i in range(1, 11):
        x = _residual(blocks, x, "block35", i, 0.17)
    x = blocks.reduced(x, "mixed_6a", [[(384, 3)], [(256, 1), (256, 3), (384, 3)]])
    for i in range(1, 21):
        x = _residual(blocks, x, "block17", i, 0.1)
    x = blocks.reduced(x, "mixed_7a", [[(256, 1), (384, 3)], [(256, 1), (288, 3)], [(256, 1), (288, 3), (320, 3)]])
    for i in range(1, 10):
        x = _residual(blocks, x, "block8", i, 0.2)
    x = _residual(blocks, x, "block8", 10, 1.0, relu=False)
    return frame.top(blocks.convolution(x, 1536, 1, name="conv_7b"))
