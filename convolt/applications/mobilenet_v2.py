"""MobileNet v2: blocks that widen, convolve depthwise and narrow again, with shortcuts between the narrow ends."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.variants import Variant, is_torch
from convolt.applications.weights import TorchNames, known_side
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["MobileNetV2", "decode_predictions", "preprocess_input"]

STAGES = ((16, 1, 1, 1), (24, 2, 2, 6), (32, 3, 2, 6), (64, 4, 2, 6), (96, 3, 1, 6), (160, 3, 2, 6), (320, 1, 1, 6))
"""(filters, blocks, strides of the first, expansion)."""

preprocess_input = preprocessing("tf")

FIRST = {"depthwise": "conv.0.0", "depthwise_BN": "conv.0.1", "project": "conv.1", "project_BN": "conv.2"}
OTHERS = {"expand": "conv.0.0", "expand_BN": "conv.0.1", "depthwise": "conv.1.0", "depthwise_BN": "conv.1.1",
          "project": "conv.2", "project_BN": "conv.3"}
"""Parts of a block: Convolt's name → torchvision's."""

TIMM_FIRST = {"conv_dw": "conv.0.0", "bn1": "conv.0.1", "conv_pw": "conv.1", "bn2": "conv.2"}
TIMM_OTHERS = {"conv_pw": "conv.0.0", "bn1": "conv.0.1", "conv_dw": "conv.1.0", "bn2": "conv.1.1", "conv_pwl": "conv.2", "bn3": "conv.3"}
"""timm's name → torchvision's."""


def _timm_block(match: re.Match[str]) -> str:
    number = sum(stage[1] for stage in STAGES[:int(match[1])]) + int(match[2])
    return f"features.{number + 1}.{(TIMM_OTHERS if number else TIMM_FIRST)[match[3]]}.{match[4]}"


TORCH = TorchNames([
    (r"Conv1\.(.*)", r"features.0.0.\1"), (r"bn_Conv1\.(.*)", r"features.0.1.\1"),
    (r"expanded_conv_([a-zBN_]+)\.(.*)", lambda m: f"features.1.{FIRST[m[1]]}.{m[2]}"),
    (r"block_(\d+)_([a-zBN_]+)\.(.*)", lambda m: f"features.{int(m[1]) + 1}.{OTHERS[m[2]]}.{m[3]}"),
    (r"Conv_1\.(.*)", r"features.18.0.\1"), (r"Conv_1_bn\.(.*)", r"features.18.1.\1"), (r"predictions\.(.*)", r"classifier.1.\1"),
], title="torchvision or timm", variant="torch", synonyms=[
    (r"conv_stem\.(.*)", r"features.0.0.\1"), (r"bn1\.(.*)", r"features.0.1.\1"), (r"blocks\.(\d)\.(\d)\.([a-z_0-9]+)\.(.*)", _timm_block),
    (r"conv_head\.(.*)", r"features.18.0.\1"), (r"bn2\.(.*)", r"features.18.1.\1"), (r"classifier\.(weight|bias)", r"classifier.1.\1"),
])


def _files(options: Mapping[str, Any], sides: Sequence[int | None], include_top: bool) -> list[str]:
    kind = f"{float(options['alpha'])}_{known_side(sides, (96, 128, 160, 192))}"
    return [f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{kind}{'' if include_top else '_no_top'}.h5"]


def divisible(filters: float, divisor: int = 8) -> int:
    """Returns the multiple of `divisor` that is nearest to a number of filters, and no more than a tenth below it."""
    nearest = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * filters else nearest


def _block(x: SymbolicTensor, number: int, filters: int, strides: int, expansion: int, style: Variant) -> SymbolicTensor:
    prefix, before, channels = f"block_{number}_" if number else "expanded_conv_", x, int(x.shape[-1] or 0)

    def normalized(x: SymbolicTensor, name: str) -> SymbolicTensor:
        return layers.ReLU(6.0, name=f"{prefix}{name}_relu")(style.norm(x, f"{prefix}{name}_BN"))  # type: ignore[no-any-return]

    if number:
        x = layers.Conv2D(expansion * channels, 1, padding="same", use_bias=False, name=f"{prefix}expand")(x)
        x = normalized(x, "expand")
    if strides == 2:
        x = layers.ZeroPadding2D(style.border(x, 3), name=f"{prefix}pad")(x)
    x = layers.DepthwiseConv2D(3, strides=strides, padding="same" if strides == 1 else "valid", use_bias=False,
                               name=f"{prefix}depthwise")(x)
    x = normalized(x, "depthwise")
    x = layers.Conv2D(filters, 1, padding="same", use_bias=False, name=f"{prefix}project")(x)
    x = style.norm(x, f"{prefix}project_BN")
    return layers.Add(name=f"{prefix}add")([before, x]) if strides == 1 and channels == filters else x


@architecture("mobilenet_v2", family="MobileNet", pixels="tf", source="Sandler et al. 2018, https://arxiv.org/abs/1801.04381", torch=TORCH,
              files=_files,
              arguments="input_shape alpha include_top weights input_tensor pooling classes classifier_activation name stem variant")
def MobileNetV2(frame: Frame, *, alpha: float = 1.0, stem: str = "large", variant: str = "keras") -> SymbolicTensor:  # noqa: N802
    """MobileNet v2; `alpha` times the filters, `stem` as in `MobileNet`, `variant` is "keras" or "torch" (torchvision, timm).

    Keras counterpart: `keras.applications.MobileNetV2`.
    """
    torch, small = is_torch("MobileNetV2", variant), frame.is_small("MobileNetV2", stem)
    style, strides = Variant(torch, 0.9, 1e-5) if torch else Variant(torch, 0.999), 1 if small else 2
    x, padding = style.padded(frame.x, 3, strides)
    x = layers.Conv2D(divisible(32 * alpha), 3, strides=strides, padding=padding, use_bias=False, name="Conv1")(x)
    x, number = layers.ReLU(6.0, name="Conv1_relu")(style.norm(x, "bn_Conv1")), 0
    for stage, (filters, blocks, strides, expansion) in enumerate(STAGES):
        for i in range(blocks):
            x = _block(x, number, divisible(int(filters * alpha)), 1 if i > 0 or (small and stage == 1) else strides, expansion, style)
            number += 1
    x = layers.Conv2D(divisible(1280 * max(1.0, alpha)), 1, use_bias=False, name="Conv_1")(x)
    x = layers.ReLU(6.0, name="out_relu")(style.norm(x, "Conv_1_bn"))
    return frame.top(x, dropout=0.2 if torch else 0.0)
