"""ResNet of the second kind: normalization and ReLU come before the convolutions, and nothing after the sum."""

from __future__ import annotations

from collections.abc import Sequence

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.variants import Variant, is_torch
from convolt.applications.weights import TorchNames, as_dense
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["ResNet50V2", "ResNet101V2", "ResNet152V2", "decode_predictions", "preprocess_input"]

SOURCE = "He et al., https://arxiv.org/abs/1603.05027; Keras, timm"

preprocess_input = preprocessing("tf")

NORMS = {"preact": 1, "1": 2, "2": 3}
"""Convolt's normalization in a block → timm's number of it."""

TORCH = TorchNames([
    (r"conv1_conv\.(.*)", r"stem.conv.\1"), (r"post_bn\.(.*)", r"norm.\1"), (r"predictions\.(.*)", r"head.fc.\1"),
    (r"conv(\d)_block(\d+)_0_conv\.(.*)", lambda m: f"stages.{int(m[1]) - 2}.blocks.{int(m[2]) - 1}.downsample.conv.{m[3]}"),
    (r"conv(\d)_block(\d+)_(\d)_conv\.(.*)", lambda m: f"stages.{int(m[1]) - 2}.blocks.{int(m[2]) - 1}.conv{m[3]}.{m[4]}"),
    (r"conv(\d)_block(\d+)_(preact|[12])_bn\.(.*)",
     lambda m: f"stages.{int(m[1]) - 2}.blocks.{int(m[2]) - 1}.norm{NORMS[m[3]]}.{m[4]}"),
], prepare=as_dense, title="timm", head=r"head\..*", variant="torch", pixels="tf")


def _norm_relu(x: SymbolicTensor, name: str, style: Variant) -> SymbolicTensor:
    return layers.Activation("relu", name=f"{name}_relu")(style.norm(x, f"{name}_bn"))  # type: ignore[no-any-return]


def _block(x: SymbolicTensor, filters: int, stride: int, conv_shortcut: bool, name: str, style: Variant) -> SymbolicTensor:
    before = _norm_relu(x, f"{name}_preact", style)
    if conv_shortcut:
        shortcut = layers.Conv2D(4 * filters, 1, stride if style.torch else 1, use_bias=not style.torch, name=f"{name}_0_conv")(before)
    else:
        shortcut = layers.MaxPooling2D(1, stride, name=f"{name}_0_pool")(x) if stride > 1 else x
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_1_conv")(before)
    x = _norm_relu(x, f"{name}_1", style)
    x = layers.ZeroPadding2D(1, name=f"{name}_2_pad")(x)
    x = layers.Conv2D(filters, 3, stride, use_bias=False, name=f"{name}_2_conv")(x)
    x = _norm_relu(x, f"{name}_2", style)
    x = layers.Conv2D(4 * filters, 1, use_bias=not style.torch, name=f"{name}_3_conv")(x)
    return layers.Add(name=f"{name}_out")([shortcut, x])  # type: ignore[no-any-return]


def _stem(x: SymbolicTensor, small: bool, style: Variant) -> SymbolicTensor:
    """The first convolution and pooling; PyTorch's pads with less than any number, Keras's with 0."""
    if small:
        return layers.Conv2D(64, 3, padding="same", use_bias=not style.torch, name="conv1_conv")(x)  # type: ignore[no-any-return]
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = layers.Conv2D(64, 7, strides=2, use_bias=not style.torch, name="conv1_conv")(x)
    if style.torch:  # windows around each second place, cut off at the border
        return layers.MaxPooling2D(1, strides=2)(layers.MaxPooling2D(3, strides=1, padding="same", name="pool1_pool")(x))  # type: ignore[no-any-return]
    return layers.MaxPooling2D(3, strides=2, name="pool1_pool")(layers.ZeroPadding2D(1, name="pool1_pad")(x))  # type: ignore[no-any-return]


def _resnet(frame: Frame, counts: Sequence[int], who: str, stem: str, variant: str) -> SymbolicTensor:
    """Returns the network. The last block of a stage halves the map, but in the last stage; in timm the first block, but in the first."""
    torch = is_torch(who, variant)
    style = Variant(True, 0.9, 1e-5) if torch else Variant(False, 0.99, 1.001e-5)
    x = _stem(frame.x, frame.is_small(who, stem), style)
    for stage, count in enumerate(counts, start=2):
        for i in range(1, count + 1):
            halves = i == 1 and stage > 2 if torch else i == count and stage < 5
            x = _block(x, 64 << (stage - 2), 2 if halves else 1, i == 1, f"conv{stage}_block{i}", style)
    return frame.top(_norm_relu(x, "post", style))


@architecture("resnet50v2", family="ResNet V2", source=SOURCE, pixels="tf", torch=TORCH)
def ResNet50V2(frame: Frame, *, stem: str = "large", variant: str = "keras") -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """Keras counterpart: `keras.applications.ResNet50V2`.

    `stem` is "large", "small" (for 32×32) or "auto", `variant` "keras" or "torch" (timm's `resnetv2_50`).
    """
    return _resnet(frame, (3, 4, 6, 3), "ResNet50V2", stem, variant)


@architecture("resnet101v2", family="ResNet V2", source=SOURCE, pixels="tf", torch=TORCH)
def ResNet101V2(frame: Frame, *, stem: str = "large", variant: str = "keras") -> SymbolicTensor:  # noqa: N802
    """Keras counterpart: `keras.applications.ResNet101V2`.

    `stem` is "large", "small" (for 32×32) or "auto", `variant` "keras" or "torch" (timm's `resnetv2_101`).
    """
    return _resnet(frame, (3, 4, 23, 3), "ResNet101V2", stem, variant)


@architecture("resnet152v2", family="ResNet V2", source=SOURCE, pixels="tf", torch=TORCH)
def ResNet152V2(frame: Frame, *, stem: str = "large", variant: str = "keras") -> SymbolicTensor:  # noqa: N802
    """Keras counterpart: `keras.applications.ResNet152V2`.

    `stem` is "large", "small" (for 32×32) or "auto", `variant` "keras" or "torch" (timm's `resnetv2_152`).
    """
    return _resnet(frame, (3, 8, 36, 3), "ResNet152V2", stem, variant)
