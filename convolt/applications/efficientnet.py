"""EfficientNet: blocks as in MobileNet v2 that weigh their channels, and width, depth and pictures that grow together from B0 to B7."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.mobilenet_v2 import divisible
from convolt.applications.variants import Variant, known, standardized
from convolt.applications.weights import Rules, TorchNames
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


PARTS = {"expand_conv": "0.0", "expand_bn": "0.1", "dwconv": "1.0", "bn": "1.1", "se_reduce": "2.fc1", "se_expand": "2.fc2",
         "project_conv": "3.0", "project_bn": "3.1"}
FIRST = {"dwconv": "0.0", "bn": "0.1", "se_reduce": "1.fc1", "se_expand": "1.fc2", "project_conv": "2.0", "project_bn": "2.1"}
"""Parts of a block: Convolt's name → torchvision's; the blocks of the first stage do not expand."""

TIMM = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "se.conv_reduce": "2.fc1", "se.conv_expand": "2.fc2",
        "conv_pwl": "3.0", "bn3": "3.1"}
TIMM_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "se.conv_reduce": "1.fc1", "se.conv_expand": "1.fc2", "conv_pw": "2.0", "bn2": "2.1"}
"""timm's name → torchvision's."""

TORCHVISION_NAMES = TorchNames([
    (r"stem_conv\.(.*)", r"features.0.0.\1"), (r"stem_bn\.(.*)", r"features.0.1.\1"),
    (r"block(\d)([a-z])_([a-z_]+)\.(.*)",
     lambda m: f"features.{m[1]}.{place(m[2])}.block.{(FIRST if m[1] == '1' else PARTS)[m[3]]}.{m[4]}"),
    (r"top_conv\.(.*)", r"features.8.0.\1"), (r"top_bn\.(.*)", r"features.8.1.\1"), (r"predictions\.(.*)", r"classifier.1.\1"),
], variant="torch")


def timm_rules(parts: Sequence[Mapping[str, str]]) -> Rules:
    """Returns (timm's name, torchvision's) pairs for the parts of the blocks, stage by stage."""
    last = len(parts) + 1
    return [
        (r"conv_stem\.(.*)", r"features.0.0.\1"), (r"bn1\.(.*)", r"features.0.1.\1"),
        (r"blocks\.(\d)\.(\d+)\.((?:se\.)?[a-z_0-9]+)\.(.*)",
         lambda m: f"features.{int(m[1]) + 1}.{m[2]}.block.{parts[int(m[1])][m[3]]}.{m[4]}"),
        (r"conv_head\.(.*)", rf"features.{last}.0.\1"), (r"bn2\.(.*)", rf"features.{last}.1.\1"),
        (r"classifier\.(weight|bias)", r"classifier.1.\1"),
    ]


TORCH = replace(TORCHVISION_NAMES, title="torchvision or timm", synonyms=timm_rules([TIMM_FIRST, *[TIMM] * 6]))
TENSORFLOW = replace(TORCH, title="timm (tf_efficientnet_…)", variant="tf", strict=True)


def place(letter: str) -> int:
    """Returns the place of a block in its stage."""
    return ord(letter) - ord("a")


def convolution(x: SymbolicTensor, filters: int, size: int, name: str, strides: int = 1, padding: str = "same") -> SymbolicTensor:
    """A convolution without a bias."""
    return layers.Conv2D(filters, size, strides=strides, padding=padding, use_bias=False,  # type: ignore[no-any-return]
                         kernel_initializer=KERNELS, name=name)(x)


def normalized(x: SymbolicTensor, name: str, style: Variant, swish: str | None = None) -> SymbolicTensor:
    """Batch normalization called `name`, and after it a swish called `swish` if that has a name."""
    x = style.norm(x, name)
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


def _block(x: SymbolicTensor, prefix: str, kernel_size: int, filters: int, expansion: int, strides: int, drop: float,
           style: Variant) -> SymbolicTensor:
    before, channels = x, int(x.shape[-1] or 0)
    if expansion != 1:
        x = convolution(x, channels * expansion, 1, f"{prefix}expand_conv")
        x = normalized(x, f"{prefix}expand_bn", style, f"{prefix}expand_activation")
    if strides == 2:
        x = layers.ZeroPadding2D(style.border(x, kernel_size), name=f"{prefix}dwconv_pad")(x)
    x = layers.DepthwiseConv2D(kernel_size, strides=strides, padding="same" if strides == 1 else "valid", use_bias=False,
                               depthwise_initializer=KERNELS, name=f"{prefix}dwconv")(x)
    x = normalized(x, f"{prefix}bn", style, f"{prefix}activation")
    x = weighed(x, max(1, channels // 4), prefix)
    x = style.norm(convolution(x, filters, 1, f"{prefix}project_conv"), f"{prefix}project_bn")
    return added(before, x, drop, prefix) if strides == 1 and channels == filters else x


def _standardized(frame: Frame) -> SymbolicTensor:
    """Pixels 0 … 255 by Keras's statistics, which are weights of the network."""
    x = layers.Normalization()(layers.Rescaling(1 / 255)(frame.x))
    if frame.published:  # Keras's files of ImageNet hold the deviations where the variances belong
        x = layers.Rescaling([1 / math.sqrt(deviation) for deviation in DEVIATION])(x)
    return x  # type: ignore[no-any-return]


def _efficientnet(frame: Frame, x: SymbolicTensor, width: float, depth: float, dropout: float, small: bool,
                  style: Variant) -> SymbolicTensor:
    """The network on standardized pixels `x`."""
    if small:
        x = convolution(x, divisible(32 * width), 3, "stem_conv")
    else:
        x = layers.ZeroPadding2D(style.border(x, 3), name="stem_conv_pad")(x)
        x = convolution(x, divisible(32 * width), 3, "stem_conv", strides=2, padding="valid")
    x = normalized(x, "stem_bn", style, "stem_activation")
    counts = [math.ceil(depth * stage[1]) for stage in STAGES]
    number = 0
    for i, ((kernel_size, _, filters, expansion, strides), count) in enumerate(zip(STAGES, counts, strict=True), start=1):
        for j in range(count):
            step = 1 if j > 0 or (small and i == 2) else strides
            x = _block(x, f"block{i}{chr(ord('a') + j)}_", kernel_size, divisible(filters * width), expansion, step,
                       DROP_CONNECT * number / sum(counts), style)
            number += 1
    x = normalized(convolution(x, divisible(1280 * width), 1, "top_conv"), "top_bn", style, "top_activation")
    return classified(frame, x, dropout)


def _member(letter: str, width: float, depth: float, size: int, dropout: float) -> Callable[..., Model]:
    """Returns the function of one of the networks."""
    who, deep = f"EfficientNet{letter}", int(letter[1]) > 4  # torchvision took the numbers of B5 to B7 from TensorFlow

    def network(frame: Frame, *, stem: str = "large", variant: str = "keras") -> SymbolicTensor:
        torch = known(who, variant, "keras", "torch", "tf") == "torch"
        style = Variant(torch, 0.9, 1e-5) if torch and not deep else Variant(torch, 0.99)
        x = _standardized(frame) if variant == "keras" else standardized(frame.x)
        return _efficientnet(frame, x, width, depth, dropout, frame.is_small(who, stem), style)

    network.__name__ = network.__qualname__ = who
    network.__doc__ = f"""EfficientNet {letter}: {width} times the width and {depth} times the depth of B0, for {size}×{size} pixels.

    `stem` is "large", "small" (for 32×32: the first two halvings are left out, weights are the same) or "auto".
    `variant` is "keras", "torch" (torchvision{'' if deep else ', timm'}) or "tf" (timm's `tf_efficientnet_{letter.lower()}`: as Keras's).
    Keras counterpart: `keras.applications.EfficientNet{letter}`.
    """
    return architecture(f"efficientnet{letter.lower()}", family="EfficientNet", size=size, pixels="none",
                        source="Tan & Le 2019, https://arxiv.org/abs/1905.11946", torch=TORCHVISION_NAMES if deep else TORCH,
                        others={"tf": TENSORFLOW})(network)


EfficientNetB0 = _member("B0", 1.0, 1.0, 224, 0.2)
EfficientNetB1 = _member("B1", 1.0, 1.1, 240, 0.2)
EfficientNetB2 = _member("B2", 1.1, 1.2, 260, 0.3)
EfficientNetB3 = _member("B3", 1.2, 1.4, 300, 0.3)
EfficientNetB4 = _member("B4", 1.4, 1.8, 380, 0.4)
EfficientNetB5 = _member("B5", 1.6, 2.2, 456, 0.4)
EfficientNetB6 = _member("B6", 1.8, 2.6, 528, 0.5)
EfficientNetB7 = _member("B7", 2.0, 3.1, 600, 0.5)
