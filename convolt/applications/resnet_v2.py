"""ResNet of the second kind: normalization and ReLU come before the convolutions, and nothing after the sum."""

from __future__ import annotations

from collections.abc import Sequence

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["ResNet50V2", "ResNet101V2", "ResNet152V2", "decode_predictions", "preprocess_input"]

SOURCE = "He et al., https://arxiv.org/abs/1603.05027; Keras"
EPSILON = 1.001e-5

preprocess_input = preprocessing("tf")


def _norm_relu(x: SymbolicTensor, name: str) -> SymbolicTensor:
    x = layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)  # type: ignore[no-any-return]


def _block(x: SymbolicTensor, filters: int, stride: int, conv_shortcut: bool, name: str) -> SymbolicTensor:
    before = _norm_relu(x, f"{name}_preact")
    if conv_shortcut:
        shortcut = layers.Conv2D(4 * filters, 1, stride, name=f"{name}_0_conv")(before)
    else:
        shortcut = layers.MaxPooling2D(1, stride, name=f"{name}_0_pool")(x) if stride > 1 else x
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_1_conv")(before)
    x = _norm_relu(x, f"{name}_1")
    x = layers.ZeroPadding2D(1, name=f"{name}_2_pad")(x)
    x = layers.Conv2D(filters, 3, stride, use_bias=False, name=f"{name}_2_conv")(x)
    x = _norm_relu(x, f"{name}_2")
    x = layers.Conv2D(4 * filters, 1, name=f"{name}_3_conv")(x)
    return layers.Add(name=f"{name}_out")([shortcut, x])  # type: ignore[no-any-return]


def _resnet(frame: Frame, counts: Sequence[int], who: str, stem: str) -> SymbolicTensor:
    """Returns the network; as in Keras, the last block of a stage halves the map, except in the last stage."""
    if frame.is_small(who, stem):
        x = layers.Conv2D(64, 3, padding="same", name="conv1_conv")(frame.x)
    else:
        x = layers.ZeroPadding2D(3, name="conv1_pad")(frame.x)
        x = layers.Conv2D(64, 7, strides=2, name="conv1_conv")(x)
        x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
        x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for stage, count in enumerate(counts, start=2):
        for i in range(1, count + 1):
            stride = 2 if i == count and stage < 5 else 1
            x = _block(x, 64 << (stage - 2), stride, i == 1, f"conv{stage}_block{i}")
    return frame.top(_norm_relu(x, "post"))


@architecture("resnet50v2", family="ResNet V2", source=SOURCE, pixels="tf")
def ResNet50V2(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """Keras counterpart: `keras.applications.ResNet50V2`. `stem` is "large", "small" (for 32×32) or "auto"."""
    return _resnet(frame, (3, 4, 6, 3), "ResNet50V2", stem)


@architecture("resnet101v2", family="ResNet V2", source=SOURCE, pixels="tf")
def ResNet101V2(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """Keras counterpart: `keras.applications.ResNet101V2`. `stem` is "large", "small" (for 32×32) or "auto"."""
    return _resnet(frame, (3, 4, 23, 3), "ResNet101V2", stem)


@architecture("resnet152v2", family="ResNet V2", source=SOURCE, pixels="tf")
def ResNet152V2(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """Keras counterpart: `keras.applications.ResNet152V2`. `stem` is "large", "small" (for 32×32) or "auto"."""
    return _resnet(frame, (3, 8, 36, 3), "ResNet152V2", stem)
