"""MobileNet: depthwise convolutions, each followed by a convolution 1×1."""

from __future__ import annotations

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["MobileNet", "decode_predictions", "preprocess_input"]

FILTERS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
HALVING = (2, 4, 6, 12)
"""Blocks, counted from 1, that halve the picture."""

preprocess_input = preprocessing("tf")


def _relu6(x: SymbolicTensor, name: str) -> SymbolicTensor:
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x)  # type: ignore[no-any-return]


def _block(x: SymbolicTensor, number: int, filters: int, depth_multiplier: int, halves: bool) -> SymbolicTensor:
    strides, padding = (2, "valid") if halves else (1, "same")
    if strides == 2:
        x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"conv_pad_{number}")(x)
    x = layers.DepthwiseConv2D(3, strides=strides, padding=padding, depth_multiplier=depth_multiplier, use_bias=False,
                               name=f"conv_dw_{number}")(x)
    x = _relu6(x, f"conv_dw_{number}")
    x = layers.Conv2D(filters, 1, padding="same", use_bias=False, name=f"conv_pw_{number}")(x)
    return _relu6(x, f"conv_pw_{number}")


@architecture("mobilenet", family="MobileNet", pixels="tf", source="Howard et al. 2017, https://arxiv.org/abs/1704.04861",
              arguments="input_shape alpha depth_multiplier dropout include_top weights input_tensor pooling classes classifier_activation "
                        "name stem")
def MobileNet(frame: Frame, *, alpha: float = 1.0, depth_multiplier: int = 1, dropout: float = 0.001,  # noqa: N802
              stem: str = "large") -> SymbolicTensor:
    """MobileNet; `alpha` times the filters, `depth_multiplier` depthwise kernels for each channel.

    `stem` is "large", "small" (for 32×32: the first two halvings are left out, weights are the same) or "auto".
    Keras counterpart: `keras.applications.MobileNet`.
    """
    small = frame.is_small("MobileNet", stem)
    x = layers.Conv2D(int(32 * alpha), 3, strides=1 if small else 2, padding="same", use_bias=False, name="conv1")(frame.x)
    x = _relu6(x, "conv1")
    for number, filters in enumerate(FILTERS, start=1):
        halves = number in (HALVING[1:] if small else HALVING)
        x = _block(x, number, int(filters * alpha), depth_multiplier, halves)
    if not frame.include_top:
        return frame.pooled(x)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Conv2D(frame.classes, 1, padding="same", name="conv_preds")(x)
    x = layers.Reshape((frame.classes,), name="reshape_2")(x)
    return layers.Activation(frame.activation, name="predictions")(x)  # type: ignore[no-any-return]
