"""Xception: separable convolutions all the way, with shortcuts."""

from __future__ import annotations

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["Xception", "decode_predictions", "preprocess_input"]

preprocess_input = preprocessing("tf")


def _relu(x: SymbolicTensor, name: str) -> SymbolicTensor:
    return layers.Activation("relu", name=f"{name}_act")(x)  # type: ignore[no-any-return]


def _separable(x: SymbolicTensor, filters: int, name: str) -> SymbolicTensor:
    x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)  # type: ignore[no-any-return]


def _halving(x: SymbolicTensor, block: int, filters: tuple[int, int]) -> SymbolicTensor:
    """Two separable convolutions and max pooling, beside a convolution 1×1 that halves the picture too."""
    shortcut = layers.Conv2D(filters[1], 1, strides=2, padding="same", use_bias=False)(x)
    shortcut = layers.BatchNormalization()(shortcut)
    for i, n in enumerate(filters, start=1):
        name = f"block{block}_sepconv{i}"
        x = _separable(x if block == 2 and i == 1 else _relu(x, name), n, name)  # block 1 ends in a ReLU
    x = layers.MaxPooling2D(3, strides=2, padding="same", name=f"block{block}_pool")(x)
    return layers.Add()([x, shortcut])  # type: ignore[no-any-return]


@architecture("xception", family="Xception", size=299, smallest=71, pixels="tf",
              source="Chollet 2016, https://arxiv.org/abs/1610.02357")
def Xception(frame: Frame) -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """Xception. Keras counterpart: `keras.applications.Xception`."""
    x = frame.x
    for name, filters, strides in (("block1_conv1", 32, 2), ("block1_conv2", 64, 1)):
        x = layers.Conv2D(filters, 3, strides=strides, use_bias=False, name=name)(x)
        x = _relu(layers.BatchNormalization(name=f"{name}_bn")(x), name)
    for block, filters in enumerate((128, 256, 728), start=2):
        x = _halving(x, block, (filters, filters))
    for block in range(5, 13):
        before = x
        for i in (1, 2, 3):
            name = f"block{block}_sepconv{i}"
            x = _separable(_relu(x, name), 728, name)
        x = layers.Add()([x, before])
    x = _halving(x, 13, (728, 1024))
    for name, filters in (("block14_sepconv1", 1536), ("block14_sepconv2", 2048)):
        x = _relu(_separable(x, filters, name), name)
    return frame.top(x)
