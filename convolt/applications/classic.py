"""LeNet-5, AlexNet and SqueezeNet."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import preprocessing
from convolt.applications.weights import Rules, TorchNames
from convolt.layers.symbolic import SymbolicTensor
from convolt.models import Model

__all__ = ["AlexNet", "LeNet5", "SqueezeNet1_0", "SqueezeNet1_1", "preprocess_input"]

SQUEEZE_PAPER = "Iandola et al., https://arxiv.org/abs/1602.07360; torchvision"

preprocess_input = preprocessing("torch")


def _before_flatten(name: str, channels: int) -> Any:
    """Returns what reorders the columns of a dense layer: PyTorch flattens channels before rows; Convolt, as Keras, after columns."""

    def prepare(tensors: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
        first = tensors.get(name)
        if first is None or first.ndim != 2 or first.shape[1] % channels:
            return tensors
        side = round((first.shape[1] // channels) ** 0.5)
        if first.shape[1] != channels * side * side:
            return tensors
        return {**tensors, name: first.reshape(-1, channels, side, side).permute(0, 2, 3, 1).reshape(first.shape)}

    return prepare


LENET_NAMES = TorchNames([(r"(conv1|conv2|fc1|fc2)\.(.*)", r"\1.\2"), (r"predictions\.(.*)", r"fc3.\1")],
                         prepare=_before_flatten("fc1.weight", 16), title="PyTorch's tutorial", pixels="tf", head=r"fc3\..*")


@architecture("lenet5", family="LeNet", size=32, smallest=28, channels=1, classes=10, pixels="tf", flattens=True, torch=LENET_NAMES,
              source="LeCun et al., 1998, Gradient-based learning applied to document recognition")
def LeNet5(frame: Frame, *, activation: str = "tanh", pool: str = "avg") -> SymbolicTensor:  # noqa: N802 (as Keras writes names)
    """LeNet-5 as it is built today: all maps of the second convolution see all of the first, and the classifier is a dense layer.

    Args:
        frame: input and end.
        activation: "tanh" as in the paper, or "relu".
        pool: "avg" as in the paper, or "max".

    Pictures of 28×28 are padded to 32×32, as the paper does.
    """
    pooling = layers.MaxPooling2D if pool == "max" else layers.AveragePooling2D
    small = frame.x.shape[1] is not None and frame.x.shape[1] < 32
    x = layers.Conv2D(6, 5, padding="same" if small else "valid", activation=activation, name="conv1")(frame.x)
    x = pooling(2, name="pool1")(x)
    x = layers.Conv2D(16, 5, activation=activation, name="conv2")(x)
    x = pooling(2, name="pool2")(x)
    if not frame.include_top:
        return frame.pooled(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(120, activation=activation, name="fc1")(x)
    x = layers.Dense(84, activation=activation, name="fc2")(x)
    return frame.classify(x)


ALEX_RULES: Rules = [(rf"conv{i}\.(.*)", rf"features.{index}.\1") for i, index in enumerate((0, 3, 6, 8, 10), start=1)]
ALEX_NAMES = TorchNames([*ALEX_RULES, (r"fc1\.(.*)", r"classifier.1.\1"), (r"fc2\.(.*)", r"classifier.4.\1"),
                         (r"predictions\.(.*)", r"classifier.6.\1")], prepare=_before_flatten("classifier.1.weight", 256))


@architecture("alexnet", family="AlexNet", smallest=63, flattens=True, torch=ALEX_NAMES,
              source="Krizhevsky, https://arxiv.org/abs/1404.5997; torchvision")
def AlexNet(frame: Frame, *, dropout: float = 0.5) -> SymbolicTensor:  # noqa: N802
    """AlexNet in one column, without local response normalization, as in torchvision."""
    x = layers.ZeroPadding2D(2, name="conv1_pad")(frame.x)
    x = layers.Conv2D(64, 11, 4, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = layers.Conv2D(192, 5, padding="same", activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)
    for i, filters in enumerate((384, 256, 256), start=3):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{i}")(x)
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    if not frame.include_top:
        return frame.pooled(x)
    x = layers.Flatten(name="flatten")(x)
    for i in (1, 2):
        x = layers.Dropout(dropout, name=f"dropout{i}")(x)
        x = layers.Dense(4096, activation="relu", name=f"fc{i}")(x)
    return frame.classify(x)


def _fire(x: SymbolicTensor, squeeze: int, expand: int, name: str) -> SymbolicTensor:
    x = layers.Conv2D(squeeze, 1, activation="relu", name=f"{name}_squeeze")(x)
    ones = layers.Conv2D(expand, 1, activation="relu", name=f"{name}_expand1x1")(x)
    threes = layers.Conv2D(expand, 3, padding="same", activation="relu", name=f"{name}_expand3x3")(x)
    return layers.Concatenate(name=f"{name}_concat")([ones, threes])  # type: ignore[no-any-return]


FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


def _squeezenet(frame: Frame, first: tuple[int, int], pools: tuple[int, ...], dropout: float) -> SymbolicTensor:
    """Returns the network; `first` is (filters, size) of the first convolution, `pools` before which fire modules maps halve."""
    x = layers.Conv2D(first[0], first[1], 2, activation="relu", name="conv1")(frame.x)
    for i, (squeeze, expand) in enumerate(FIRES, start=2):
        if i in pools:
            below, right = (_past_end(size) for size in x.shape[1:3])
            if below or right:
                x = layers.ZeroPadding2D(((0, below), (0, right)), name=f"pool{i - 1}_pad")(x)
            x = layers.MaxPooling2D(3, 2, name=f"pool{i - 1}")(x)
        x = _fire(x, squeeze, expand, f"fire{i}")
    if not frame.include_top:
        return frame.pooled(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Conv2D(frame.classes, 1, activation="relu", kernel_initializer="random_normal", name="predictions")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return layers.Activation(frame.activation, name="activation")(x)  # type: ignore[no-any-return]


def _past_end(size: int | None) -> int:
    """Returns by how much the last window of a pooling (3, stride 2) reaches over the end, where PyTorch's `ceil_mode` keeps it.

    The values before are from ReLU, so that zeros beyond the end change no maximum.
    """
    return 0 if size is None or size % 2 else 1


def _squeeze_names(fires: tuple[int, ...]) -> TorchNames:
    rules: list[Any] = [(rf"fire{i}_(squeeze|expand1x1|expand3x3)\.(.*)", rf"features.{index}.\1.\2")
                        for i, index in enumerate(fires, start=2)]
    return TorchNames([(r"conv1\.(.*)", r"features.0.\1"), *rules, (r"predictions\.(.*)", r"classifier.1.\1")])


@architecture("squeezenet1_0", family="SqueezeNet", smallest=48, source=SQUEEZE_PAPER, torch=_squeeze_names((3, 4, 5, 7, 8, 9, 10, 12)))
def SqueezeNet1_0(frame: Frame, *, dropout: float = 0.5) -> SymbolicTensor:  # noqa: N802
    """SqueezeNet of the paper."""
    return _squeezenet(frame, (96, 7), (2, 5, 9), dropout)


@architecture("squeezenet1_1", family="SqueezeNet", smallest=32, source=SQUEEZE_PAPER, torch=_squeeze_names((3, 4, 6, 7, 9, 10, 11, 12)))
def SqueezeNet1_1(frame: Frame, *, dropout: float = 0.5) -> SymbolicTensor:  # noqa: N802
    """SqueezeNet with less than half of the computations, by its authors."""
    return _squeezenet(frame, (64, 3), (2, 4, 6), dropout)
