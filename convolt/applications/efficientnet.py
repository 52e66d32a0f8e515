"""EfficientNet: blocks as in MobileNet v2 that weigh their channels, and width, depth and pictures that grow together from B0 to B7."""

from __future__ import annotations

import math
from collections.abc import Callable

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.mobilenet_v2 import border_before_halving, divisible
from convolt.initializers import VarianceScaling
from convolt.layers.symbolic import SymbolicTensor
from convolt.models import Model

__all__ = ["EfficientNetB0", "EfficientNetB1", "EfficientNetB2", "EfficientNetB3", "EfficientNetB4", "EfficientNetB5", "EfficientNetB6",
           "EfficientNetB7", "decode_predictions", "preprocess_input"]

STAGES = ((3, 1, 16, 1, 1), (3, 2, 24, 6, 2), (5, 2, 40, 6, 2), (3, 3, 80, 6, 2), (5, 3, 112, 6, 1), (5, 4, 192, 6, 2), (3, 1, 320, 6, 1))
"""(kernel size, blocks, filters, expansion, strides of the first block) of B0."""

DROP_CONNECT = 0.2
"""How often the last block would be left out in training; the others in proportion to their place."""

KERNELS = VarianceScaling(2.0, "fan_out", "truncated_normal")
CLASSIFIER = VarianceScaling(1 / 3, "fan_out", "uniform")
DEVIATION = (0.229, 0.224, 0.225)

preprocess_input = preprocessing("none")


def convolution(x: SymbolicTensor, filters: int, size: int, name: str, strides: int = 1, padding: str = "same") -> SymbolicTensor:
    """A convolution without a bias."""
    return layers.Conv2D(filters, size, strides=strides, padding=padding, use_bias=False,  # type: ignore[no-any-return]
                         kernel_initializer=KERNELS, name=name)(x)


def normalized(x: SymbolicTensor, name: str, swish: str | None = None, momentum: float = 0.99) -> SymbolicTensor:
    """Batch normalization called `name`, and after it a swish called `swish` if that has a name."""
    x = layers.BatchNormalization(momentum=momentum, name=name)(x)
    return layers.Activation("swish", name=swish)(x) if swish else x


def weighed(x: SymbolicTensor, squeezed: int, prefix: str) -> SymbolicTensor:
    """Each channel times a number from 0 to 1 that follows from the means of all (Hu et al. 2017)."""
    channels = int(x.shape[-1] or 0)
    y = layers.GlobalAveragePooling2D(name=f"{prefix}se_squeeze")(x)
    y = layers.Reshape((1, 1, channels), name=f"{prefix}se_reshape")(y)
    for filters, activation, name in ((squeezed, "swish", "se_reduce"), (channels, "sigmoid", "se_expand")):
        y = layers.Conv2D(filters, 1, padding="same", activation=activation, kernel_initializer=KERNELS, name=f"{prefix}{name}")(y)
    return layers.Multiply(name=f"{prefix}se_excite")([x, y])  # type: ignore[no-any-return]


def added(before: SymbolicTensor, x: SymbolicTensor, drop: float, prefix: str) -> SymbolicTensor:
    """The sum, which leaves `x` out for a share `drop` of the samples in training."""
    if drop > 0:
        x = layers.Dropout(drop, noise_shape=(None, 1, 1, 1), name=f"{prefix}drop")(x)
    return layers.Add(name=f"{prefix}add")([x, before])  # type: ignore[no-any-return]


def classified(frame: Frame, x: SymbolicTensor, dropout: float) -> SymbolicTensor:
    """The end of both EfficientNets."""
    if not frame.include_top:
        return frame.pooled(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return frame.classify(layers.Dropout(dropout, name="top_dropout")(x), kernel_initializer=CLASSIFIER)


def _block(x: SymbolicTensor, prefix: str, kernel_size: int, filters: int, expansion: int, strides: int, drop: float) -> SymbolicTensor:
    before, channels = x, int(x.shape[-1] or 0)
    if expansion != 1:
        x = convolution(x, channels * expansion, 1, f"{prefix}expand_conv")
        x = normalized(x, f"{prefix}expand_bn", f"{prefix}expand_activation")
    if strides == 2:
        x = layers.ZeroPadding2D(border_before_halving(x, kernel_size), name=f"{prefix}dwconv_pad")(x)
    x = layers.DepthwiseConv2D(kernel_size, strides=strides, padding="same" if strides == 1 else "valid", use_bias=False,
                               depthwise_initializer=KERNELS, name=f"{prefix}dwconv")(x)
    x = normalized(x, f"{prefix}bn", f"{prefix}activation")
    x = weighed(x, max(1, channels // 4), prefix)
    x = normalized(convolution(x, filters, 1, f"{prefix}project_conv"), f"{prefix}project_bn")
    return added(before, x, drop, prefix) if strides == 1 and channels == filters else x


def _efficientnet(frame: Frame, width: float, depth: float, dropout: float, small: bool) -> SymbolicTensor:
    x = layers.Normalization()(layers.Rescaling(1 / 255)(frame.x))
    if frame.published:  # Keras's files of ImageNet hold the deviations where the variances belong
        x = layers.Rescaling([1 / math.sqrt(deviation) for deviation in DEVIATION])(x)
    if small:
        x = convolution(x, divisible(32 * width), 3, "stem_conv")
    else:
        x = layers.ZeroPadding2D(border_before_halving(x, 3), name="stem_conv_pad")(x)
        x = convolution(x, divisible(32 * width), 3, "stem_conv", strides=2, padding="valid")
    x = normalized(x, "stem_bn", "stem_activation")
    counts = [math.ceil(depth * stage[1]) for stage in STAGES]
    number = 0
    for i, ((kernel_size, _, filters, expansion, strides), count) in enumerate(zip(STAGES, counts, strict=True), start=1):
        for j in range(count):
            step = 1 if j > 0 or (small and i == 2) else strides
            x = _block(x, f"block{i}{chr(ord('a') + j)}_", kernel_size, divisible(filters * width), expansion, step,
                       DROP_CONNECT * number / sum(counts))
            number += 1
    x = normalized(convolution(x, divisible(1280 * width), 1, "top_conv"), "top_bn", "top_activation")
    return classified(frame, x, dropout)


def _member(letter: str, width: float, depth: float, size: int, dropout: float) -> Callable[..., Model]:
    """Returns the function of one of the networks."""

    def network(frame: Frame, *, stem: str = "large") -> SymbolicTensor:
        return _efficientnet(frame, width, depth, dropout, frame.is_small(f"EfficientNet{letter}", stem))

    network.__name__ = network.__qualname__ = f"EfficientNet{letter}"
    network.__doc__ = f"""EfficientNet {letter}: {width} times the width and {depth} times the depth of B0, for {size}×{size} pixels.

    `stem` is "large", "small" (for 32×32: the first two halvings are left out, weights are the same) or "auto".
    Keras counterpart: `keras.applications.EfficientNet{letter}`.
    """
    return architecture(f"efficientnet{letter.lower()}", family="EfficientNet", size=size, pixels="none",
                        source="Tan & Le 2019, https://arxiv.org/abs/1905.11946")(network)


EfficientNetB0 = _member("B0", 1.0, 1.0, 224, 0.2)
EfficientNetB1 = _member("B1", 1.0, 1.1, 240, 0.2)
EfficientNetB2 = _member("B2", 1.1, 1.2, 260, 0.3)
EfficientNetB3 = _member("B3", 1.2, 1.4, 300, 0.3)
EfficientNetB4 = _member("B4", 1.4, 1.8, 380, 0.4)
EfficientNetB5 = _member("B5", 1.6, 2.2, 456, 0.4)
EfficientNetB6 = _member("B6", 1.8, 2.6, 528, 0.5)
EfficientNetB7 = _member("B7", 2.0, 3.1, 600, 0.5)
