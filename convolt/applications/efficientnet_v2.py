"""EfficientNet v2: like EfficientNet, with plain convolutions in place of the depthwise ones where maps are large, and smaller kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from convolt import layers
from convolt.applications.efficientnet import KERNELS, TIMM, added, classified, convolution, normalized, place, timm_rules, weighed
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.variants import Variant, known, standardized
from convolt.applications.weights import TorchNames
from convolt.layers.symbolic import SymbolicTensor
from convolt.models import Model

__all__ = ["EfficientNetV2B0", "EfficientNetV2B1", "EfficientNetV2B2", "EfficientNetV2B3", "EfficientNetV2L", "EfficientNetV2M",
           "EfficientNetV2S", "decode_predictions", "preprocess_input"]

Stage = tuple[bool, int, int, int, int]
"""(whether its convolutions are plain, blocks, filters, expansion, strides of the first block); plain ones do not weigh channels."""

STAGES: Mapping[str, Sequence[Stage]] = {
    "B": ((True, 1, 16, 1, 1), (True, 2, 32, 4, 2), (True, 2, 48, 4, 2), (False, 3, 96, 4, 2), (False, 5, 112, 6, 1),
          (False, 8, 192, 6, 2)),
    "S": ((True, 2, 24, 1, 1), (True, 4, 48, 4, 2), (True, 4, 64, 4, 2), (False, 6, 128, 4, 2), (False, 9, 160, 6, 1),
          (False, 15, 256, 6, 2)),
    "M": ((True, 3, 24, 1, 1), (True, 5, 48, 4, 2), (True, 5, 80, 4, 2), (False, 7, 160, 4, 2), (False, 14, 176, 6, 1),
          (False, 18, 304, 6, 2), (False, 5, 512, 6, 1)),
    "L": ((True, 4, 32, 1, 1), (True, 7, 64, 4, 2), (True, 7, 96, 4, 2), (False, 10, 192, 4, 2), (False, 19, 224, 6, 1),
          (False, 25, 384, 6, 2), (False, 7, 640, 6, 1)),
}
STEM = {"B": 32, "S": 24, "M": 24, "L": 32}

DROP_CONNECT = 0.2
MOMENTUM = 0.9
DROPOUT = {"S": 0.2, "M": 0.3, "L": 0.4}
"""Of torchvision's classifiers; Keras's is 0.2 in all."""

preprocess_input = preprocessing("none")

PLAIN = {"expand_conv": "0.0", "expand_bn": "0.1", "project_conv": "1.0", "project_bn": "1.1"}
FIRST = {"project_conv": "0.0", "project_bn": "0.1"}
DEPTHWISE = {"expand_conv": "0.0", "expand_bn": "0.1", "dwconv2": "1.0", "bn": "1.1", "se_reduce": "2.fc1", "se_expand": "2.fc2",
             "project_conv": "3.0", "project_bn": "3.1"}
"""Parts of a block: Convolt's name → torchvision's; the plain blocks of the first stage do not expand."""


TIMM_PLAIN = {"conv_exp": "0.0", "bn1": "0.1", "conv_pwl": "1.0", "bn2": "1.1"}
TIMM_FIRST = {"conv": "0.0", "bn1": "0.1"}
"""timm's name → torchvision's; the blocks that weigh channels are those of EfficientNet."""


def _torch_names(stages: Sequence[Stage]) -> TorchNames:
    """Names of torchvision, which count the stages between the stem and the last convolution."""
    parts = [DEPTHWISE if not plain else FIRST if expansion == 1 else PLAIN for plain, _, _, expansion, _ in stages]
    last = len(stages) + 1
    return TorchNames([
        (r"stem_conv\.(.*)", r"features.0.0.\1"), (r"stem_bn\.(.*)", r"features.0.1.\1"),
        (r"block(\d)([a-z])_([a-z_0-9]+)\.(.*)", lambda m: f"features.{m[1]}.{place(m[2])}.block.{parts[int(m[1]) - 1][m[3]]}.{m[4]}"),
        (r"top_conv\.(.*)", rf"features.{last}.0.\1"), (r"top_bn\.(.*)", rf"features.{last}.1.\1"),
        (r"predictions\.(.*)", r"classifier.1.\1"),
    ], variant="torch")


def _timm_names(stages: Sequence[Stage]) -> TorchNames:
    """Names of timm's `tf_` networks."""
    parts = [TIMM if not plain else TIMM_FIRST if expansion == 1 else TIMM_PLAIN for plain, _, _, expansion, _ in stages]
    return replace(_torch_names(stages), title="timm (tf_efficientnetv2_…)", variant="tf", synonyms=timm_rules(parts), strict=True)


def _plain_block(x: SymbolicTensor, prefix: str, filters: int, expansion: int, strides: int, drop: float, style: Variant) -> SymbolicTensor:
    before, channels = x, int(x.shape[-1] or 0)
    x, padding = style.padded(x, 3, strides)
    if expansion != 1:
        x = convolution(x, channels * expansion, 3, f"{prefix}expand_conv", strides, padding)
        x = normalized(x, f"{prefix}expand_bn", style, f"{prefix}expand_activation")
        x = style.norm(convolution(x, filters, 1, f"{prefix}project_conv"), f"{prefix}project_bn")
    else:
        x = convolution(x, filters, 3, f"{prefix}project_conv", strides, padding)
        x = normalized(x, f"{prefix}project_bn", style, f"{prefix}project_activation")
    return added(before, x, drop, prefix) if strides == 1 and channels == filters else x


def _depthwise_block(x: SymbolicTensor, prefix: str, filters: int, expansion: int, strides: int, drop: float,
                     style: Variant) -> SymbolicTensor:
    before, channels = x, int(x.shape[-1] or 0)
    x = convolution(x, channels * expansion, 1, f"{prefix}expand_conv")
    x, padding = style.padded(normalized(x, f"{prefix}expand_bn", style, f"{prefix}expand_activation"), 3, strides)
    x = layers.DepthwiseConv2D(3, strides=strides, padding=padding, use_bias=False, depthwise_initializer=KERNELS,
                               name=f"{prefix}dwconv2")(x)
    x = weighed(normalized(x, f"{prefix}bn", style, f"{prefix}activation"), max(1, channels // 4), prefix)
    x = style.norm(convolution(x, filters, 1, f"{prefix}project_conv"), f"{prefix}project_bn")
    return added(before, x, drop, prefix) if strides == 1 and channels == filters else x


def _rescaled(frame: Frame, kind: str, variant: str) -> SymbolicTensor:
    """Pixels 0 … 255 as the networks were trained: B as EfficientNet, the others on -1 … 1 (Keras's nearly); torchvision's L alone so."""
    if variant == "torch":
        return layers.Rescaling(1 / 127.5, offset=-1.0)(frame.x) if kind == "L" else standardized(frame.x)
    if variant == "tf":
        return standardized(frame.x) if kind == "B" else layers.Rescaling(1 / 127.5, offset=-1.0)(frame.x)
    return standardized(frame.x) if kind == "B" and frame.x.shape[-1] == 3 else layers.Rescaling(1 / 128, offset=-1.0)(frame.x)


def _efficientnet(frame: Frame, kind: str, width: float, depth: float, include_preprocessing: bool, small: bool,
                  variant: str) -> SymbolicTensor:
    def wide(filters: int) -> int:
        return max(8, int(filters * width + 4) // 8 * 8)

    style, strides = Variant(variant == "torch", MOMENTUM), 1 if small else 2
    x, padding = style.padded(_rescaled(frame, kind, variant) if include_preprocessing else frame.x, 3, strides)
    x = normalized(convolution(x, wide(STEM[kind]), 3, "stem_conv", strides, padding), "stem_bn", style, "stem_activation")
    blocks = sum(stage[1] for stage in STAGES[kind])  # without `depth`, as in Keras
    number = 0
    for i, (plain, count, filters, expansion, strides) in enumerate(STAGES[kind], start=1):
        block = _plain_block if plain else _depthwise_block
        for j in range(math.ceil(depth * count)):
            prefix, drop = f"block{i}{chr(ord('a') + j)}_", DROP_CONNECT * number / blocks
            x = block(x, prefix, wide(filters), expansion, 1 if j > 0 or (small and i == 2) else strides, drop, style)
            number += 1
    x = normalized(convolution(x, wide(1280), 1, "top_conv"), "top_bn", style, "top_activation")
    return classified(frame, x, DROPOUT.get(kind, 0.2) if style.torch else 0.2)


def _member(letters: str, width: float, depth: float, size: int) -> Callable[..., Model]:
    """Returns the function of one of the networks."""
    who = f"EfficientNetV2{letters}"

    def network(frame: Frame, *, include_preprocessing: bool = True, stem: str = "large", variant: str = "keras") -> SymbolicTensor:
        small, variant = frame.is_small(who, stem), known(who, variant, "keras", "torch", "tf")
        return _efficientnet(frame, letters[0], width, depth, include_preprocessing, small, variant)

    network.__name__ = network.__qualname__ = who
    network.__doc__ = f"""EfficientNet v2 {letters}, for {size}×{size} pixels 0 … 255, or without `include_preprocessing` for -1 … 1.

    `stem` is "large", "small" (for 32×32: the first two halvings are left out, weights are the same) or "auto".
    `variant` is "keras", "torch" (torchvision, which publishes S, M and L) or "tf" (timm's `tf_efficientnetv2_{letters.lower()}`).
    Keras counterpart: `keras.applications.EfficientNetV2{letters}`.
    """
    return architecture(f"efficientnetv2-{letters.lower()}", family="EfficientNet v2", size=size, pixels="none",
                        source="Tan & Le 2021, https://arxiv.org/abs/2104.00298",
                        arguments="include_top weights input_tensor input_shape pooling classes classifier_activation "
                                  "include_preprocessing name stem variant",
                        torch=None if letters[0] == "B" else _torch_names(STAGES[letters]),
                        others={"tf": _timm_names(STAGES[letters[0]])})(network)


EfficientNetV2B0 = _member("B0", 1.0, 1.0, 224)
EfficientNetV2B1 = _member("B1", 1.0, 1.1, 240)
EfficientNetV2B2 = _member("B2", 1.1, 1.2, 260)
EfficientNetV2B3 = _member("B3", 1.2, 1.4, 300)
EfficientNetV2S = _member("S", 1.0, 1.0, 384)
EfficientNetV2M = _member("M", 1.0, 1.0, 480)
EfficientNetV2L = _member("L", 1.0, 1.0, 480)
