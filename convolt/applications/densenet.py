"""DenseNet: each layer sees the outputs of all before it, side by side."""

from __future__ import annotations

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.weights import TorchNames
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["DenseNet121", "DenseNet169", "DenseNet201", "decode_predictions", "preprocess_input"]

SOURCE = "Huang et al. 2016, https://arxiv.org/abs/1608.06993"
GROWTH = 32
EPSILON = 1.001e-5

TORCH = TorchNames([
    (r"conv1_conv\.(.*)", r"features.conv0.\1"),
    (r"conv1_bn\.(.*)", r"features.norm0.\1"),
    (r"conv(\d)_block(\d+)_([01])_bn\.(.*)",
     lambda m: f"features.denseblock{int(m[1]) - 1}.denselayer{m[2]}.norm{int(m[3]) + 1}.{m[4]}"),
    (r"conv(\d)_block(\d+)_([12])_conv\.(.*)",
     lambda m: f"features.denseblock{int(m[1]) - 1}.denselayer{m[2]}.conv{m[3]}.{m[4]}"),
    (r"pool(\d)_bn\.(.*)", lambda m: f"features.transition{int(m[1]) - 1}.norm.{m[2]}"),
    (r"pool(\d)_conv\.(.*)", lambda m: f"features.transition{int(m[1]) - 1}.conv.{m[2]}"),
    (r"bn\.(.*)", r"features.norm5.\1"),
    (r"predictions\.(.*)", r"classifier.\1"),
])

preprocess_input = preprocessing("torch")


def _normalized(x: SymbolicTensor, prefix: str = "") -> SymbolicTensor:
    x = layers.BatchNormalization(epsilon=EPSILON, name=f"{prefix}bn")(x)
    return layers.Activation("relu", name=f"{prefix}relu")(x)  # type: ignore[no-any-return]


def _dense_block(x: SymbolicTensor, count: int, name: str) -> SymbolicTensor:
    for i in range(1, count + 1):
        prefix = f"{name}_block{i}"
        y = layers.Conv2D(4 * GROWTH, 1, use_bias=False, name=f"{prefix}_1_conv")(_normalized(x, f"{prefix}_0_"))
        y = layers.Conv2D(GROWTH, 3, padding="same", use_bias=False, name=f"{prefix}_2_conv")(_normalized(y, f"{prefix}_1_"))
        x = layers.Concatenate(name=f"{prefix}_concat")([x, y])
    return x


def _halving(x: SymbolicTensor, name: str) -> SymbolicTensor:
    channels = int(x.shape[-1] or 0) // 2
    x = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_conv")(_normalized(x, f"{name}_"))
    return layers.AveragePooling2D(2, strides=2, name=f"{name}_pool")(x)  # type: ignore[no-any-return]


def _densenet(frame: Frame, counts: tuple[int, int, int, int], who: str, stem: str) -> SymbolicTensor:
    if frame.is_small(who, stem):  # as in the paper for CIFAR
        x = _normalized(layers.Conv2D(2 * GROWTH, 3, padding="same", use_bias=False, name="conv1_conv")(frame.x), "conv1_")
    else:
        x = layers.ZeroPadding2D(3)(frame.x)
        x = layers.Conv2D(64, 7, strides=2, use_bias=False, name="conv1_conv")(x)
        x = layers.ZeroPadding2D(1)(_normalized(x, "conv1_"))
        x = layers.MaxPooling2D(3, strides=2, name="pool1")(x)
    for stage, count in enumerate(counts, start=2):
        x = _dense_block(x, count, f"conv{stage}")
        if stage < 5:
            x = _halving(x, f"pool{stage}")
    return frame.top(_normalized(x))


@architecture("densenet121", family="DenseNet", source=SOURCE, pixels="torch", torch=TORCH)
def DenseNet121(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """DenseNet with 58 dense layers. `stem` is "large", "small" (for 32×32) or "auto".

    Keras counterpart: `keras.applications.DenseNet121`.
    """
    return _densenet(frame, (6, 12, 24, 16), "DenseNet121", stem)


@architecture("densenet169", family="DenseNet", source=SOURCE, pixels="torch", torch=TORCH)
def DenseNet169(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """DenseNet with 82 dense layers. `stem` is "large", "small" (for 32×32) or "auto".

    Keras counterpart: `keras.applications.DenseNet169`.
    """
    return _densenet(frame, (6, 12, 32, 32), "DenseNet169", stem)


@architecture("densenet201", family="DenseNet", source=SOURCE, pixels="torch", torch=TORCH)
def DenseNet201(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """DenseNet with 98 dense layers. `stem` is "large", "small" (for 32×32) or "auto".

    Keras counterpart: `keras.applications.DenseNet201`.
    """
    return _densenet(frame, (6, 12, 48, 32), "DenseNet201", stem)
