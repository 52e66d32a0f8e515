"""EfficientNet v2: like EfficientNet, with plain convolutions in place of the depthwise ones where maps are large, and smaller kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from convolt import layers
from convolt.applications.efficientnet import KERNELS, added, classified, convolution, normalized, weighed
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
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
MEAN, VARIANCE = (0.485, 0.456, 0.406), (0.229**2, 0.224**2, 0.225**2)

preprocess_input = preprocessing("none")


def _normalized(x: SymbolicTensor, name: str, swish: str | None = None) -> SymbolicTensor:
    return normalized(x, name, swish, MOMENTUM)


def _plain_block(x: SymbolicTensor, prefix: str, filters: int, expansion: int, strides: int, drop: float) -> SymbolicTensor:
    before, channels = x, int(x.shape[-1] or 0)
    if expansion != 1:
        x = convolution(x, channels * expansion, 3, f"{prefix}expand_conv", strides)
        x = _normalized(x, f"{prefix}expand_bn", f"{prefix}expand_activation")
        x = _normalized(convolution(x, filters, 1, f"{prefix}project_conv"), f"{prefix}project_bn")
    else:
        x = convolution(x, filters, 3, f"{prefix}project_conv", strides)
        x = _normalized(x, f"{prefix}project_bn", f"{prefix}project_activation")
    return added(before, x, drop, prefix) if strides == 1 and channels == filters else x


def _depthwise_block(x: SymbolicTensor, prefix: str, filters: int, expansion: int, strides: int, drop: float) -> SymbolicTensor:
    before, channels = x, int(x.shape[-1] or 0)
    x = convolution(x, channels * expansion, 1, f"{prefix}expand_conv")
    x = _normalized(x, f"{prefix}expand_bn", f"{prefix}expand_activation")
    x = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False, depthwise_initializer=KERNELS,
                               name=f"{prefix}dwconv2")(x)
    x = weighed(_normalized(x, f"{prefix}bn", f"{prefix}activation"), max(1, channels // 4), prefix)
    x = _normalized(convolution(x, filters, 1, f"{prefix}project_conv"), f"{prefix}project_bn")
    return added(before, x, drop, prefix) if strides == 1 and channels == filters else x


def _rescaled(frame: Frame, kind: str) -> SymbolicTensor:
    """Pixels 0 … 255 as the networks were trained: the B's as EfficientNet, the others on -1 … 1 (nearly)."""
    if kind == "B" and frame.x.shape[-1] == 3:
        return layers.Normalization(mean=MEAN, variance=VARIANCE)(layers.Rescaling(1 / 255)(frame.x))  # type: ignore[no-any-return]
    return layers.Rescaling(1 / 128, offset=-1.0)(frame.x)  # type: ignore[no-any-return]


def _efficientnet(frame: Frame, kind: str, width: float, depth: float, include_preprocessing: bool, small: bool) -> SymbolicTensor:
    def wide(filters: int) -> int:
        return max(8, int(filters * width + 4) // 8 * 8)

    x = _rescaled(frame, kind) if include_preprocessing else frame.x
    x = _normalized(convolution(x, wide(STEM[kind]), 3, "stem_conv", strides=1 if small else 2), "stem_bn", "stem_activation")
    blocks = sum(stage[1] for stage in STAGES[kind])  # without `depth`, as in Keras
    number = 0
    for i, (plain, count, filters, expansion, strides) in enumerate(STAGES[kind], start=1):
        block = _plain_block if plain else _depthwise_block
        for j in range(math.ceil(depth * count)):
            prefix, drop = f"block{i}{chr(ord('a') + j)}_", DROP_CONNECT * number / blocks
            x = block(x, prefix, wide(filters), expansion, 1 if j > 0 or (small and i == 2) else strides, drop)
            number += 1
    x = _normalized(convolution(x, wide(1280), 1, "top_conv"), "top_bn", "top_activation")
    return classified(frame, x, 0.2)


def _member(letters: str, width: float, depth: float, size: int) -> Callable[..., Model]:
    """Returns the function of one of the networks."""

    def network(frame: Frame, *, include_preprocessing: bool = True, stem: str = "large") -> SymbolicTensor:
        small = frame.is_small(f"EfficientNetV2{letters}", stem)
        return _efficientnet(frame, letters[0], width, depth, include_preprocessing, small)

    network.__name__ = network.__qualname__ = f"EfficientNetV2{letters}"
    network.__doc__ = f"""EfficientNet v2 {letters}, for {size}×{size} pixels 0 … 255, or without `include_preprocessing` for -1 … 1.

    `stem` is "large", "small" (for 32×32: the first two halvings are left out, weights are the same) or "auto".
    Keras counterpart: `keras.applications.EfficientNetV2{letters}`.
    """
    return architecture(f"efficientnetv2-{letters.lower()}", family="EfficientNet v2", size=size, pixels="none",
                        source="Tan & Le 2021, https://arxiv.org/abs/2104.00298",
                        arguments="include_top weights input_tensor input_shape pooling classes classifier_activation "
                                  "include_preprocessing name stem")(network)


EfficientNetV2B0 = _member("B0", 1.0, 1.0, 224)
EfficientNetV2B1 = _member("B1", 1.0, 1.1, 240)
EfficientNetV2B2 = _member("B2", 1.1, 1.2, 260)
EfficientNetV2B3 = _member("B3", 1.2, 1.4, 300)
EfficientNetV2S = _member("S", 1.0, 1.0, 384)
EfficientNetV2M = _member("M", 1.0, 1.0, 480)
EfficientNetV2L = _member("L", 1.0, 1.0, 480)
