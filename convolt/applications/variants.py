"""The two ways in which a network is published: as Keras has it, and as torchvision and timm do.

The weights have the same shapes, or nearly. What differs is where a layer that halves the map pads it (Keras: below and right, where sides
are even; PyTorch: all sides alike), the numbers of batch normalization, and the range of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from convolt import layers
from convolt.errors import ArgumentError, explain
from convolt.layers.symbolic import SymbolicTensor

Border = tuple[tuple[int, int], tuple[int, int]]

MEAN, VARIANCE = (0.485, 0.456, 0.406), (0.229**2, 0.224**2, 0.225**2)
"""Of ImageNet's pixels, 0 … 1."""


def is_torch(who: str, variant: str) -> bool:
    """Whether an argument `variant` means that of PyTorch's publishers.

    Raises:
        ArgumentError: it is neither "keras" nor "torch".
    """
    return known(who, variant, "keras", "torch") == "torch"


def known(who: str, variant: str, *names: str) -> str:
    """Returns an argument `variant` if it is one of several names.

    Raises:
        ArgumentError: it is not.
    """
    if variant not in names:
        first = ", ".join(map(repr, names[:-1]))
        raise ArgumentError(explain(f"{who}(variant)", repr(variant), f"{first} or {names[-1]!r}"))
    return variant


@dataclass(frozen=True)
class Variant:
    """How a network pads and normalizes.

    Attributes:
        torch: whether as PyTorch's publishers do, rather than Keras.
        momentum, epsilon: of batch normalization.
    """

    torch: bool
    momentum: float
    epsilon: float = 1e-3

    def norm(self, x: SymbolicTensor, name: str | None = None) -> SymbolicTensor:
        """Returns `x` after batch normalization."""
        return layers.BatchNormalization(momentum=self.momentum, epsilon=self.epsilon, name=name)(x)  # type: ignore[no-any-return]

    def border(self, x: SymbolicTensor, kernel_size: int) -> Border:
        """Returns the padding of a "valid" convolution with strides 2; Keras's acts like "same" where sides are even.

        Keras counterpart: `keras.src.applications.imagenet_utils.correct_pad`.
        """
        half = kernel_size // 2
        if self.torch:
            return (half, half), (half, half)
        height, width = (1 if size is None else 1 - size % 2 for size in (x.shape[1], x.shape[1] and x.shape[2]))
        return (half - height, half), (half - width, half)

    def padded(self, x: SymbolicTensor, kernel_size: int, strides: int) -> tuple[SymbolicTensor, str]:
        """Returns what a convolution gets, and its `padding`: Keras's "same", or a border of its own where PyTorch's differs."""
        if self.torch and strides > 1:
            return layers.ZeroPadding2D(self.border(x, kernel_size))(x), "valid"
        return x, "same"


def standardized(x: SymbolicTensor) -> SymbolicTensor:
    """Returns pixels 0 … 255 with mean 0 and deviation 1 over ImageNet; where there are not three channels, 0 … 1."""
    x = layers.Rescaling(1 / 255)(x)
    return layers.Normalization(mean=MEAN, variance=VARIANCE)(x) if x.shape[-1] == 3 else x
