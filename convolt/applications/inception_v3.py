"""Inception v3: convolutions of several sizes side by side, the large ones taken apart into small ones, rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["InceptionV3", "decode_predictions", "preprocess_input"]

Size = int | tuple[int, int]
Branch = Sequence[tuple[int, Size]]
"""(filters, size) of each convolution, one after the other."""

ROW, COLUMN = (1, 7), (7, 1)

preprocess_input = preprocessing("tf")


def convolution(x: SymbolicTensor, filters: int, size: Size, strides: int = 1, padding: str = "same",
                name: str | None = None) -> SymbolicTensor:
    """Convolution, batch normalization without a scale, ReLU."""
    x = layers.Conv2D(filters, size, strides=strides, padding=padding, use_bias=False, name=name)(x)
    x = layers.BatchNormalization(scale=False, name=name and f"{name}_bn")(x)
    return layers.Activation("relu", name=name and f"{name}_ac")(x)  # type: ignore[no-any-return]


def chain(x: SymbolicTensor, branch: Branch) -> SymbolicTensor:
    """The convolutions of a branch."""
    for filters, size in branch:
        x = convolution(x, filters, size)
    return x


def stem(x: SymbolicTensor) -> SymbolicTensor:
    """What both Inception v3 and Inception-ResNet v2 begin with: an eighth of the height and width, 192 channels."""
    x = convolution(x, 32, 3, strides=2, padding="valid")
    x = convolution(x, 32, 3, padding="valid")
    x = convolution(x, 64, 3)
    x = layers.MaxPooling2D(3, strides=2)(x)
    x = convolution(x, 80, 1, padding="valid")
    x = convolution(x, 192, 3, padding="valid")
    return layers.MaxPooling2D(3, strides=2)(x)  # type: ignore[no-any-return]


def mixed(x: SymbolicTensor, name: str, branches: Sequence[Branch], pooled: int) -> SymbolicTensor:
    """Branches of convolutions, and one of average pooling with `pooled` filters, side by side."""
    return _beside_pooling(x, name, [chain(x, branch) for branch in branches], pooled)


def reduced(x: SymbolicTensor, name: str, branches: Sequence[Branch]) -> SymbolicTensor:
    """Branches whose last convolution halves the picture, and max pooling, side by side."""
    outputs = [convolution(chain(x, branch[:-1]), *branch[-1], strides=2, padding="valid") for branch in branches]
    return layers.Concatenate(name=name)([*outputs, layers.MaxPooling2D(3, strides=2)(x)])  # type: ignore[no-any-return]


def _beside_pooling(x: SymbolicTensor, name: str, outputs: list[SymbolicTensor], pooled: int) -> SymbolicTensor:
    pool = layers.AveragePooling2D(3, strides=1, padding="same")(x)
    return layers.Concatenate(name=name)([*outputs, convolution(pool, pooled, 1)])  # type: ignore[no-any-return]


def _widened(x: SymbolicTensor, index: int) -> SymbolicTensor:
    """A block of the end: two of its branches part into a row and a column."""

    def parted(branch: Branch, name: str | None) -> SymbolicTensor:
        before = chain(x, branch)
        return layers.Concatenate(name=name)([convolution(before, 384, size) for size in ((1, 3), (3, 1))])  # type: ignore[no-any-return]

    outputs = [convolution(x, 320, 1), parted([(384, 1)], f"mixed9_{index}"), parted([(448, 1), (384, 3)], None)]
    return _beside_pooling(x, f"mixed{9 + index}", outputs, 192)


@architecture("inception_v3", family="Inception", size=299, smallest=75, pixels="tf",
              source="Szegedy et al. 2015, https://arxiv.org/abs/1512.00567")
def InceptionV3(frame: Frame) -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """Inception v3. Keras counterpart: `keras.applications.InceptionV3`."""
    x = stem(frame.x)
    for i, pooled in enumerate((32, 64, 64)):
        x = mixed(x, f"mixed{i}", [[(64, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)]], pooled)
    x = reduced(x, "mixed3", [[(384, 3)], [(64, 1), (96, 3), (96, 3)]])
    for i, n in enumerate((128, 160, 160, 192), start=4):
        x = mixed(x, f"mixed{i}", [[(192, 1)], [(n, 1), (n, ROW), (192, COLUMN)],
                                   [(n, 1), (n, COLUMN), (n, ROW), (n, COLUMN), (192, ROW)]], 192)
    x = reduced(x, "mixed8", [[(192, 1), (320, 3)], [(192, 1), (192, ROW), (192, COLUMN), (192, 3)]])
    return frame.top(_widened(_widened(x, 0), 1))
