"""MobileNet v2: blocks that widen, convolve depthwise and narrow again, with shortcuts between the narrow ends."""

from __future__ import annotations

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["MobileNetV2", "decode_predictions", "preprocess_input"]

STAGES = ((16, 1, 1, 1), (24, 2, 2, 6), (32, 3, 2, 6), (64, 4, 2, 6), (96, 3, 1, 6), (160, 3, 2, 6), (320, 1, 1, 6))
"""(filters, blocks, strides of the first, expansion)."""

preprocess_input = preprocessing("tf")


def divisible(filters: float, divisor: int = 8) -> int:
    """Returns the multiple of `divisor` that is nearest to a number of filters, and no more than a tenth below it."""
    nearest = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * filters else nearest


def border_before_halving(x: SymbolicTensor, kernel_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the padding of a "valid" convolution with strides 2 that acts like "same" where sides are even.

    Keras counterpart: `keras.src.applications.imagenet_utils.correct_pad`.
    """
    half = kernel_size // 2
    height, width = (1 if size is None else 1 - size % 2 for size in (x.shape[1], x.shape[1] and x.shape[2]))
    return (half - height, half), (half - width, half)


def _normalized(x: SymbolicTensor, name: str, relu: str | None = None) -> SymbolicTensor:
    x = layers.BatchNormalization(momentum=0.999, name=name)(x)
    return layers.ReLU(6.0, name=relu)(x) if relu else x


def _block(x: SymbolicTensor, number: int, filters: int, strides: int, expansion: int) -> SymbolicTensor:
    prefix, before, channels = f"block_{number}_" if number else "expanded_conv_", x, int(x.shape[-1] or 0)
    if number:
        x = layers.Conv2D(expansion * channels, 1, padding="same", use_bias=False, name=f"{prefix}expand")(x)
        x = _normalized(x, f"{prefix}expand_BN", f"{prefix}expand_relu")
    if strides == 2:
        x = layers.ZeroPadding2D(border_before_halving(x, 3), name=f"{prefix}pad")(x)
    x = layers.DepthwiseConv2D(3, strides=strides, padding="same" if strides == 1 else "valid", use_bias=False,
                               name=f"{prefix}depthwise")(x)
    x = _normalized(x, f"{prefix}depthwise_BN", f"{prefix}depthwise_relu")
    x = layers.Conv2D(filters, 1, padding="same", use_bias=False, name=f"{prefix}project")(x)
    x = _normalized(x, f"{prefix}project_BN")
    return layers.Add(name=f"{prefix}add")([before, x]) if strides == 1 and channels == filters else x


@architecture("mobilenet_v2", family="MobileNet", pixels="tf", source="Sandler et al. 2018, https://arxiv.org/abs/1801.04381",
              arguments="input_shape alpha include_top weights input_tensor pooling classes classifier_activation name stem")
def MobileNetV2(frame: Frame, *, alpha: float = 1.0, stem: str = "large") -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """MobileNet v2; `alpha` times the filters, `stem` as in `MobileNet`. Keras counterpart: `keras.applications.MobileNetV2`."""
    small = frame.is_small("MobileNetV2", stem)
    x = layers.Conv2D(divisible(32 * alpha), 3, strides=1 if small else 2, padding="same", use_bias=False, name="Conv1")(frame.x)
    x, number = _normalized(x, "bn_Conv1", "Conv1_relu"), 0
    for stage, (filters, blocks, strides, expansion) in enumerate(STAGES):
        for i in range(blocks):
            x = _block(x, number, divisible(int(filters * alpha)), 1 if i > 0 or (small and stage == 1) else strides, expansion)
            number += 1
    x = layers.Conv2D(divisible(1280 * max(1.0, alpha)), 1, use_bias=False, name="Conv_1")(x)
    return frame.top(_normalized(x, "Conv_1_bn", "out_relu"))
