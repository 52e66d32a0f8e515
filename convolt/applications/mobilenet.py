"""MobileNet: depthwise convolutions, each followed by a convolution 1×1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.variants import Variant, is_torch
from convolt.applications.weights import TorchNames, as_convolutions, known_side
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["MobileNet", "decode_predictions", "preprocess_input"]

FILTERS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
HALVING = (2, 4, 6, 12)
"""Blocks, counted from 1, that halve the picture."""

preprocess_input = preprocessing("tf")


def _place(number: int) -> str:
    """Returns stage and place of a block, counted from 1, as timm counts them: a stage begins with each halving."""
    first = max(start for start in (1, *HALVING) if start <= number)
    return f"{(1, *HALVING).index(first)}.{number - first}"


TORCH = TorchNames([
    (r"conv1\.(.*)", r"conv_stem.\1"), (r"conv1_bn\.(.*)", r"bn1.\1"),
    (r"conv_(dw|pw)_(\d+)\.(.*)", lambda m: f"blocks.{_place(int(m[2]))}.conv_{m[1]}.{m[3]}"),
    (r"conv_(dw|pw)_(\d+)_bn\.(.*)", lambda m: f"blocks.{_place(int(m[2]))}.bn{1 if m[1] == 'dw' else 2}.{m[3]}"),
    (r"conv_preds\.(.*)", r"classifier.\1"),
], prepare=as_convolutions, title="timm", variant="torch", pixels="tf")


def _files(options: Mapping[str, Any], sides: Sequence[int | None], include_top: bool) -> list[str]:
    alpha = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0"}.get(options["alpha"], "2_5")
    return [f"mobilenet_{alpha}_{known_side(sides, (128, 160, 192))}_tf{'' if include_top else '_no_top'}.h5"]


def _relu6(x: SymbolicTensor, name: str, style: Variant) -> SymbolicTensor:
    return layers.ReLU(6.0, name=f"{name}_relu")(style.norm(x, f"{name}_bn"))  # type: ignore[no-any-return]


def _block(x: SymbolicTensor, number: int, filters: int, depth_multiplier: int, halves: bool, style: Variant) -> SymbolicTensor:
    strides, padding = (2, "valid") if halves else (1, "same")
    if strides == 2:
        x = layers.ZeroPadding2D(1 if style.torch else ((0, 1), (0, 1)), name=f"conv_pad_{number}")(x)
    x = layers.DepthwiseConv2D(3, strides=strides, padding=padding, depth_multiplier=depth_multiplier, use_bias=False,
                               name=f"conv_dw_{number}")(x)
    x = _relu6(x, f"conv_dw_{number}", style)
    x = layers.Conv2D(filters, 1, padding="same", use_bias=False, name=f"conv_pw_{number}")(x)
    return _relu6(x, f"conv_pw_{number}", style)


@architecture("mobilenet", family="MobileNet", pixels="tf", source="Howard et al. 2017, https://arxiv.org/abs/1704.04861", torch=TORCH,
              files=_files,
              arguments="input_shape alpha depth_multiplier dropout include_top weights input_tensor pooling classes classifier_activation "
                        "name stem variant")
def MobileNet(frame: Frame, *, alpha: float = 1.0, depth_multiplier: int = 1, dropout: float = 0.001,  # noqa: N802
              stem: str = "large", variant: str = "keras") -> SymbolicTensor:
    """MobileNet; `alpha` times the filters, `depth_multiplier` depthwise kernels for each channel.

    `stem` is "large", "small" (for 32×32: the first two halvings are left out, weights are the same) or "auto".
    `variant` is "keras" or "torch" (timm's `mobilenetv1_100`).
    Keras counterpart: `keras.applications.MobileNet`.
    """
    torch, small = is_torch("MobileNet", variant), frame.is_small("MobileNet", stem)
    style, strides = Variant(torch, 0.9, 1e-5) if torch else Variant(torch, 0.99), 1 if small else 2
    x, padding = style.padded(frame.x, 3, strides)
    x = layers.Conv2D(int(32 * alpha), 3, strides=strides, padding=padding, use_bias=False, name="conv1")(x)
    x = _relu6(x, "conv1", style)
    for number, filters in enumerate(FILTERS, start=1):
        halves = number in (HALVING[1:] if small else HALVING)
        x = _block(x, number, int(filters * alpha), depth_multiplier, halves, style)
    if not frame.include_top:
        return frame.pooled(x)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Conv2D(frame.classes, 1, padding="same", name="conv_preds")(x)
    x = layers.Reshape((frame.classes,), name="reshape_2")(x)
    return layers.Activation(frame.activation, name="predictions")(x)  # type: ignore[no-any-return]
