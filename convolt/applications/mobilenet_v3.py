"""MobileNet v3: blocks as in v2, some of which weigh their channels, found by a search; with hard versions of swish and sigmoid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.mobilenet_v2 import divisible
from convolt.applications.variants import Variant, known, standardized
from convolt.applications.weights import Rules, TorchNames, as_convolutions
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["MobileNetV3Large", "MobileNetV3Small", "decode_predictions", "preprocess_input"]

SOURCE = "Howard et al. 2019, https://arxiv.org/abs/1905.02244"
ARGUMENTS = ("input_shape alpha minimalistic include_top weights input_tensor classes pooling dropout_rate classifier_activation "
             "include_preprocessing name stem variant")

VARIANTS = {"keras": Variant(False, 0.999), "torch": Variant(True, 0.99), "timm": Variant(True, 0.9, 1e-5), "tf": Variant(False, 0.9)}
"""Value of `variant` → how the network pads and normalizes: Keras, torchvision, timm, and timm's `tf_` networks, as Keras's."""

Block = tuple[float, int, int, int, bool, bool]
"""(expansion, filters, kernel size, strides, whether channels are weighed, whether it is hard swish in place of ReLU)."""

SMALL: Sequence[Block] = (
    (1, 16, 3, 2, True, False), (72 / 16, 24, 3, 2, False, False), (88 / 24, 24, 3, 1, False, False),
    (4, 40, 5, 2, True, True), (6, 40, 5, 1, True, True), (6, 40, 5, 1, True, True),
    (3, 48, 5, 1, True, True), (3, 48, 5, 1, True, True),
    (6, 96, 5, 2, True, True), (6, 96, 5, 1, True, True), (6, 96, 5, 1, True, True))

LARGE: Sequence[Block] = (
    (1, 16, 3, 1, False, False), (4, 24, 3, 2, False, False), (3, 24, 3, 1, False, False),
    (3, 40, 5, 2, True, False), (3, 40, 5, 1, True, False), (3, 40, 5, 1, True, False),
    (6, 80, 3, 2, False, True), (2.5, 80, 3, 1, False, True), (2.3, 80, 3, 1, False, True), (2.3, 80, 3, 1, False, True),
    (6, 112, 3, 1, True, True), (6, 112, 3, 1, True, True),
    (6, 160, 5, 2, True, True), (6, 160, 5, 1, True, True), (6, 160, 5, 1, True, True))

preprocess_input = preprocessing("none")

CONVOLUTION, WEIGHER = {"": "0", "_bn": "1"}, {"_conv": "fc1", "_conv_1": "fc2"}
"""Ends of the names in a part of a block: Convolt's → torchvision's."""


def _parts(number: int, weighed: bool) -> list[str]:
    """Returns the parts of a block that have weights, in their order."""
    return ["expand"] * (number > 0) + ["depthwise"] + ["squeeze_excite"] * weighed + ["project"]


def _torch_names(blocks: Sequence[Block]) -> TorchNames:
    """Names of torchvision, which count the parts that a block has."""
    rules: list[tuple[str, str]] = [(r"conv\.(.*)", r"features.0.0.\1"), (r"conv_bn\.(.*)", r"features.0.1.\1")]
    for number, (_, _, _, _, weighed, _) in enumerate(blocks):
        own = f"expanded_conv_{number}_" if number else "expanded_conv_"
        for place, part in enumerate(_parts(number, weighed)):
            pair = WEIGHER if part == "squeeze_excite" else CONVOLUTION
            rules += [(rf"{own}{part}{end}\.(.*)", rf"features.{number + 1}.block.{place}.{theirs}.\1") for end, theirs in pair.items()]
    last = len(blocks) + 1
    end: Rules = [(r"conv_1\.(.*)", rf"features.{last}.0.\1"), (r"conv_1_bn\.(.*)", rf"features.{last}.1.\1"),
                  (r"conv_2\.(.*)", r"classifier.0.\1"), (r"logits\.(.*)", r"classifier.3.\1")]
    return TorchNames([*rules, *end], prepare=as_convolutions, variant="torch")


TIMM = {"conv_pw": ("expand", "0"), "bn1": ("expand", "1"), "conv_dw": ("depthwise", "0"), "bn2": ("depthwise", "1"),
        "se.conv_reduce": ("squeeze_excite", "fc1"), "se.conv_expand": ("squeeze_excite", "fc2"),
        "conv_pwl": ("project", "0"), "bn3": ("project", "1")}
TIMM_FIRST = {"conv_dw": ("depthwise", "0"), "bn1": ("depthwise", "1"), "se.conv_reduce": ("squeeze_excite", "fc1"),
              "se.conv_expand": ("squeeze_excite", "fc2"), "conv_pw": ("project", "0"), "bn2": ("project", "1")}
"""timm's name → part of a block, torchvision's name in it; the first block does not expand."""


def _timm_names(blocks: Sequence[Block], stages: Sequence[int], variant: str, title: str) -> TorchNames:
    """Names of timm, which counts the blocks of each stage; `stages` has their numbers."""
    last = len(blocks) + 1

    def block(match: re.Match[str]) -> str:
        number = sum(stages[:int(match[1])]) + int(match[2])
        part, theirs = (TIMM if number else TIMM_FIRST)[match[3]]
        return f"features.{number + 1}.block.{_parts(number, blocks[number][4]).index(part)}.{theirs}.{match[4]}"

    rules: Rules = [
        (r"conv_stem\.(.*)", r"features.0.0.\1"), (r"bn1\.(.*)", r"features.0.1.\1"),
        (rf"blocks\.{len(stages)}\.0\.conv\.(.*)", rf"features.{last}.0.\1"),
        (rf"blocks\.{len(stages)}\.0\.bn1\.(.*)", rf"features.{last}.1.\1"),
        (r"blocks\.(\d)\.(\d)\.((?:se\.)?[a-z_0-9]+)\.(.*)", block),
        (r"conv_head\.(.*)", r"classifier.0.\1"), (r"classifier\.(weight|bias)", r"classifier.3.\1"),
    ]
    return replace(_torch_names(blocks), title=title, variant=variant, synonyms=rules, strict=True)


def _others(blocks: Sequence[Block], stages: Sequence[int]) -> dict[str, TorchNames]:
    titles = {"timm": "timm (mobilenetv3_…)", "tf": "timm (tf_mobilenetv3_…)"}
    return {variant: _timm_names(blocks, stages, variant, title) for variant, title in titles.items()}


def _files(kind: str, options: Mapping[str, Any], sides: Sequence[int | None], include_top: bool) -> list[str]:
    plain = "_minimalistic" if options["minimalistic"] else ""
    return [f"weights_mobilenet_v3_{kind}{plain}_224_{float(options['alpha'])}_float{'' if include_top else '_no_top_v2'}.h5"]


@dataclass(frozen=True)
class _Style:
    """The minimalistic networks have neither kernels of 5×5, nor weights of channels, nor hard swish."""

    minimalistic: bool
    variant: Variant

    def activated(self, x: SymbolicTensor, hard: bool = True) -> SymbolicTensor:
        layer = layers.Activation("hard_swish") if hard and not self.minimalistic else layers.ReLU()
        return layer(x)  # type: ignore[no-any-return]


def _weighed(x: SymbolicTensor, prefix: str) -> SymbolicTensor:
    """Each channel times a number from 0 to 1 that follows from the means of all."""
    channels, prefix = int(x.shape[-1] or 0), f"{prefix}squeeze_excite_"
    y = layers.GlobalAveragePooling2D(keepdims=True, name=f"{prefix}avg_pool")(x)
    y = layers.Conv2D(divisible(channels / 4), 1, padding="same", name=f"{prefix}conv")(y)
    y = layers.ReLU(name=f"{prefix}relu")(y)
    y = layers.Conv2D(channels, 1, padding="same", name=f"{prefix}conv_1")(y)
    y = layers.Activation("hard_sigmoid")(y)
    return layers.Multiply(name=f"{prefix}mul")([x, y])  # type: ignore[no-any-return]


def _block(x: SymbolicTensor, number: int, block: Block, alpha: float, style: _Style) -> SymbolicTensor:
    expansion, filters, kernel_size, strides, weighed, hard = block
    prefix, before, channels = f"expanded_conv_{number}_" if number else "expanded_conv_", x, int(x.shape[-1] or 0)
    filters, kernel_size = divisible(filters * alpha), 3 if style.minimalistic else kernel_size
    if number:
        x = layers.Conv2D(divisible(channels * expansion), 1, padding="same", use_bias=False, name=f"{prefix}expand")(x)
        x = style.activated(style.variant.norm(x, f"{prefix}expand_bn"), hard)
    if strides == 2:
        x = layers.ZeroPadding2D(style.variant.border(x, kernel_size), name=f"{prefix}depthwise_pad")(x)
    x = layers.DepthwiseConv2D(kernel_size, strides=strides, padding="same" if strides == 1 else "valid", use_bias=False,
                               name=f"{prefix}depthwise")(x)
    x = style.activated(style.variant.norm(x, f"{prefix}depthwise_bn"), hard)
    if weighed and not style.minimalistic:
        x = _weighed(x, prefix)
    x = layers.Conv2D(filters, 1, padding="same", use_bias=False, name=f"{prefix}project")(x)
    x = style.variant.norm(x, f"{prefix}project_bn")
    return layers.Add(name=f"{prefix}add")([before, x]) if strides == 1 and channels == filters else x


def _network(frame: Frame, blocks: Sequence[Block], last: int, alpha: float, minimalistic: bool, dropout_rate: float,
             include_preprocessing: bool, small: bool, variant: str) -> SymbolicTensor:
    style, x, strides = _Style(minimalistic, VARIANTS[variant]), frame.x, 1 if small else 2
    if include_preprocessing:
        x = standardized(x) if style.variant.torch else layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x, padding = style.variant.padded(x, 3, strides)
    x = layers.Conv2D(16, 3, strides=strides, padding=padding, use_bias=False, name="conv")(x)
    x = style.activated(style.variant.norm(x, "conv_bn"))
    first_halving = next(number for number, block in enumerate(blocks) if block[3] == 2)
    for number, block in enumerate(blocks):
        strides = 1 if small and number == first_halving else block[3]
        x = _block(x, number, (*block[:3], strides, *block[4:]), alpha, style)
    x = layers.Conv2D(divisible(int(x.shape[-1] or 0) * 6), 1, padding="same", use_bias=False, name="conv_1")(x)
    x = style.activated(style.variant.norm(x, "conv_1_bn"))
    if not frame.include_top:
        return frame.pooled(x)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Conv2D(divisible(last * alpha) if alpha > 1 else last, 1, padding="same", name="conv_2")(x)
    x = style.activated(x)
    if dropout_rate > 0:
        x = layers.Dropout(dropout_rate)(x)
    x = layers.Conv2D(frame.classes, 1, padding="same", name="logits")(x)
    return layers.Activation(frame.activation, name="predictions")(layers.Flatten()(x))  # type: ignore[no-any-return]


@architecture("mobilenet_v3_small", family="MobileNet", pixels="none", source=SOURCE, arguments=ARGUMENTS, torch=_torch_names(SMALL),
              others=_others(SMALL, (1, 2, 3, 2, 3)),
              files=partial(_files, "small"))
def MobileNetV3Small(frame: Frame, *, alpha: float = 1.0, minimalistic: bool = False, dropout_rate: float = 0.2,  # noqa: N802 (Keras's name)
                     include_preprocessing: bool = True, stem: str = "large", variant: str = "keras") -> SymbolicTensor:
    """MobileNet v3, 11 blocks; `alpha` times the filters, `stem` as in `MobileNet`.

    `variant` is "keras", "torch" (torchvision), "timm" (its `mobilenetv3_…`) or "tf" (timm's `tf_mobilenetv3_…`, padded as Keras's).

    Keras counterpart: `keras.applications.MobileNetV3Small`.
    """
    small, variant = frame.is_small("MobileNetV3Small", stem), known("MobileNetV3Small", variant, *VARIANTS)
    return _network(frame, SMALL, 1024, alpha, minimalistic, dropout_rate, include_preprocessing, small, variant)


@architecture("mobilenet_v3_large", family="MobileNet", pixels="none", source=SOURCE, arguments=ARGUMENTS, torch=_torch_names(LARGE),
              others=_others(LARGE, (1, 2, 3, 4, 2, 3)),
              files=partial(_files, "large"))
def MobileNetV3Large(frame: Frame, *, alpha: float = 1.0, minimalistic: bool = False, dropout_rate: float = 0.2,  # noqa: N802
                     include_preprocessing: bool = True, stem: str = "large", variant: str = "keras") -> SymbolicTensor:
    """MobileNet v3, 15 blocks; `alpha` times the filters, `stem` as in `MobileNet`.

    `variant` is "keras", "torch" (torchvision), "timm" (its `mobilenetv3_…`) or "tf" (timm's `tf_mobilenetv3_…`, padded as Keras's).

    Keras counterpart: `keras.applications.MobileNetV3Large`.
    """
    small, variant = frame.is_small("MobileNetV3Large", stem), known("MobileNetV3Large", variant, *VARIANTS)
    return _network(frame, LARGE, 1280, alpha, minimalistic, dropout_rate, include_preprocessing, small, variant)
