"""Inception v3: convolutions of several sizes side by side, the large ones taken apart into small ones, rows and columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.variants import is_torch
from convolt.applications.weights import Rules, TorchNames
from convolt.layers.symbolic import SymbolicTensor
from convolt.models import Model

__all__ = ["InceptionV3", "decode_predictions", "preprocess_input"]

Size = int | tuple[int, int]
Branch = Sequence[tuple[int, Size]]
"""(filters, size) of each convolution, one after the other."""

ROW, COLUMN = (1, 7), (7, 1)

preprocess_input = preprocessing("tf")


@dataclass(frozen=True)
class Blocks:
    """How the parts of Inception v3 and Inception-ResNet v2 are made.

    Attributes:
        torch: whether as torchvision and timm publish them: batch normalization has a scale, and other numbers.
        counts_border: whether means over places at the border count the zeros beyond it.
    """

    torch: bool = False
    counts_border: bool = False

    def convolution(self, x: SymbolicTensor, filters: int, size: Size, strides: int = 1, padding: str = "same",
                    name: str | None = None) -> SymbolicTensor:
        """Convolution, batch normalization, ReLU."""
        x = layers.Conv2D(filters, size, strides=strides, padding=padding, use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.9 if self.torch else 0.99, scale=self.torch, name=name and f"{name}_bn")(x)
        return layers.Activation("relu", name=name and f"{name}_ac")(x)  # type: ignore[no-any-return]

    def chain(self, x: SymbolicTensor, branch: Branch) -> SymbolicTensor:
        """The convolutions of a branch."""
        for filters, size in branch:
            x = self.convolution(x, filters, size)
        return x

    def stem(self, x: SymbolicTensor) -> SymbolicTensor:
        """What both networks begin with: an eighth of the height and width, 192 channels."""
        x = self.convolution(x, 32, 3, strides=2, padding="valid")
        x = self.convolution(x, 32, 3, padding="valid")
        x = self.convolution(x, 64, 3)
        x = layers.MaxPooling2D(3, strides=2)(x)
        x = self.convolution(x, 80, 1, padding="valid")
        x = self.convolution(x, 192, 3, padding="valid")
        return layers.MaxPooling2D(3, strides=2)(x)  # type: ignore[no-any-return]

    def mixed(self, x: SymbolicTensor, name: str, branches: Sequence[Branch], pooled: int) -> SymbolicTensor:
        """Branches of convolutions, and one of average pooling with `pooled` filters, side by side."""
        return self.beside_pooling(x, name, [self.chain(x, branch) for branch in branches], pooled)

    def reduced(self, x: SymbolicTensor, name: str, branches: Sequence[Branch]) -> SymbolicTensor:
        """Branches whose last convolution halves the picture, and max pooling, side by side."""
        outputs = [self.convolution(self.chain(x, branch[:-1]), *branch[-1], strides=2, padding="valid") for branch in branches]
        return layers.Concatenate(name=name)([*outputs, layers.MaxPooling2D(3, strides=2)(x)])  # type: ignore[no-any-return]

    def beside_pooling(self, x: SymbolicTensor, name: str, outputs: list[SymbolicTensor], pooled: int) -> SymbolicTensor:
        """Branches, and one of average pooling with `pooled` filters."""
        if self.counts_border:
            pool = layers.AveragePooling2D(3, strides=1)(layers.ZeroPadding2D(1)(x))
        else:
            pool = layers.AveragePooling2D(3, strides=1, padding="same")(x)
        return layers.Concatenate(name=name)([*outputs, self.convolution(pool, pooled, 1)])  # type: ignore[no-any-return]

    def widened(self, x: SymbolicTensor, index: int) -> SymbolicTensor:
        """A block of the end of Inception v3: two of its branches part into a row and a column."""

        def parted(branch: Branch, name: str | None) -> SymbolicTensor:
            before = self.chain(x, branch)
            ends = [self.convolution(before, 384, size) for size in ((1, 3), (3, 1))]
            return layers.Concatenate(name=name)(ends)  # type: ignore[no-any-return]

        outputs = [self.convolution(x, 320, 1), parted([(384, 1)], f"mixed9_{index}"), parted([(448, 1), (384, 3)], None)]
        return self.beside_pooling(x, f"mixed{9 + index}", outputs, 192)


def by_order(names: Sequence[str]) -> Rules:
    """Returns rules that give the unnamed convolutions, which Keras counts, PyTorch's names of `names` in the order of the calls."""
    def named(part: str) -> Callable[[re.Match[str]], str]:
        return lambda m: f"{names[int(m[1] or 0)]}.{part}.{m[2]}"

    return [(r"conv2d(?:_(\d+))?\.(.*)", named("conv")), (r"batch_normalization(?:_(\d+))?\.(.*)", named("bn"))]


def _torch_modules() -> list[str]:
    """Returns torchvision's names of the convolutions, in the order of the calls."""
    wide = ("branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a",
            "branch3x3dbl_3b", "branch_pool")
    blocks = {
        **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), ("branch1x1", ("branch5x5", 2), ("branch3x3dbl", 3), "branch_pool")),
        "Mixed_6a": ("branch3x3", ("branch3x3dbl", 3)),
        **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
                        ("branch1x1", ("branch7x7", 3), ("branch7x7dbl", 5), "branch_pool")),
        "Mixed_7a": (("branch3x3", 2), ("branch7x7x3", 4)), "Mixed_7b": wide, "Mixed_7c": wide,
    }
    stem = [f"Conv2d_{name}" for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")]
    return stem + [f"{block}.{name}" for block, branches in blocks.items() for branch in branches for name in _counted(branch)]


def _counted(branch: str | tuple[str, int]) -> list[str]:
    return [branch] if isinstance(branch, str) else [f"{branch[0]}_{i}" for i in range(1, branch[1] + 1)]


def _without_helper(tensors: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Drops the classifier in the middle, which only training needed."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("AuxLogits.")}


TORCH = TorchNames([*by_order(_torch_modules()), (r"predictions\.(.*)", r"fc.\1")], prepare=_without_helper, title="torchvision or timm",
                   variant="torch", pixels="tf")  # torchvision's network itself brings ImageNet's scale to -1 … 1


@architecture("inception_v3", family="Inception", size=299, smallest=75, pixels="tf", torch=TORCH,
              source="Szegedy et al. 2015, https://arxiv.org/abs/1512.00567")
def InceptionV3(frame: Frame, *, variant: str = "keras") -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """Inception v3; `variant` is "keras" or "torch" (torchvision, timm), whose pixels "transform_input" brings to -1 … 1.

    Keras counterpart: `keras.applications.InceptionV3`.
    """
    torch = is_torch("InceptionV3", variant)
    blocks = Blocks(torch, counts_border=torch)
    x = blocks.stem(frame.x)
    for i, pooled in enumerate((32, 64, 64)):
        x = blocks.mixed(x, f"mixed{i}", [[(64, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)]], pooled)
    x = blocks.reduced(x, "mixed3", [[(384, 3)], [(64, 1), (96, 3), (96, 3)]])
    for i, n in enumerate((128, 160, 160, 192), start=4):
        x = blocks.mixed(x, f"mixed{i}", [[(192, 1)], [(n, 1), (n, ROW), (192, COLUMN)],
                                          [(n, 1), (n, COLUMN), (n, ROW), (n, COLUMN), (192, ROW)]], 192)
    x = blocks.reduced(x, "mixed8", [[(192, 1), (320, 3)], [(192, 1), (192, ROW), (192, COLUMN), (192, 3)]])
    return frame.top(blocks.widened(blocks.widened(x, 0), 1), dropout=0.5 if torch else 0.0)
