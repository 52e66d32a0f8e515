"""Layers that add, drop or repeat pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.arguments import check_rank, one_of, tuple_of
from convolt.layers.base import Layer, registry
from convolt.layers.windows import channels_last_only, check_tensor, label
from convolt.layout import Shape

Borders = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right))."""


def borders(layer: str, argument: str, value: Any) -> Borders:
    """Returns `value` as ((top, bottom), (left, right)): from that, from (vertical, horizontal), or from one number.

    Raises:
        ArgumentError: it is none of these, or a number is negative.
    """
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise ArgumentError(explain(f"{layer}({argument})", repr(value),
                                    "a number, (vertical, horizontal) or ((top, bottom), (left, right))"))
    (top, bottom), (left, right) = (tuple_of(layer, argument, side, 2, minimum=0) for side in pair)
    return (top, bottom), (left, right)


class _Spatial(Layer):
    """A layer without weights whose output differs from its image in height and width alone."""

    def __init__(self, *, data_format: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_format = channels_last_only(type(self).__name__, data_format)

    def build(self, input_shape: Shape) -> None:
        check_rank(self, input_shape, 4)
        self.compute_output_shape(input_shape)


@registry.register()
class ZeroPadding2D(_Spatial):
    """Adds rows and columns of zeros around images.

    Args:
        padding: a number, (vertical, horizontal) or ((top, bottom), (left, right)).
        data_format: None or "channels_last".

    Raises:
        ArgumentError: a number is negative.
        ShapeError: an input is not (batch, height, width, channels).

    Shapes: (batch, height, width, channels) → (batch, height + top + bottom, width + left + right, channels).
    Keras counterpart: `keras.layers.ZeroPadding2D`; PyTorch's: `torch.nn.ZeroPad2d`.
    """

    def __init__(self, padding: Any = 1, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(data_format=data_format, **kwargs)
        self.padding = borders(type(self).__name__, "padding", padding)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        n, height, width, channels = input_shape
        vertical, horizontal = (sum(sides) for sides in self.padding)
        return n, None if height is None else height + vertical, None if width is None else width + horizontal, channels

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x, 2)
        vertical, horizontal = self.padding
        return F.pad(x, (*horizontal, *vertical))


@registry.register()
class Cropping1D(Layer):
    """Drops steps at both ends of sequences.

    Args:
        cropping: a number for both ends, or (first, last).

    Raises:
        ArgumentError: a number is negative.
        ShapeError: an input is not (batch, steps, features), or nothing of it would be left.

    Shapes: (batch, steps, features) → (batch, steps - first - last, features).
    Keras counterpart: `keras.layers.Cropping1D`. The output is a view.
    """

    def __init__(self, cropping: int | Sequence[int] = (1, 1), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cropping = tuple_of("Cropping1D", "cropping", cropping, 2, minimum=0)

    def build(self, input_shape: Shape) -> None:
        check_rank(self, input_shape, 3)
        self.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        steps = None if input_shape[1] is None else input_shape[1] - sum(self.cropping)
        if steps is not None and steps < 1:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}",
                                     f"a sequence longer than cropping={self.cropping} takes away"))
        return (input_shape[0], steps, input_shape[2])

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x, 1)
        self.compute_output_shape((x.shape[0], x.shape[2], x.shape[1]))
        return x[:, :, self.cropping[0]:x.shape[2] - self.cropping[1]]


@registry.register()
class Cropping2D(_Spatial):
    """Drops rows and columns at the borders of images.

    Args:
        cropping: a number, (vertical, horizontal) or ((top, bottom), (left, right)).
        data_format: None or "channels_last".

    Raises:
        ArgumentError: a number is negative.
        ShapeError: an input is not (batch, height, width, channels), or nothing of it would be left.

    Shapes: (batch, height, width, channels) → (batch, height - top - bottom, width - left - right, channels).
    Keras counterpart: `keras.layers.Cropping2D`. The output is a view.
    """

    def __init__(self, cropping: Any = ((0, 0), (0, 0)), data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(data_format=data_format, **kwargs)
        self.cropping = borders(type(self).__name__, "cropping", cropping)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        sizes = [None if size is None else size - sum(sides) for size, sides in zip(input_shape[1:3], self.cropping, strict=True)]
        if any(size is not None and size < 1 for size in sizes):
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}",
                                     f"an image larger than cropping={self.cropping} takes away"))
        return (input_shape[0], *sizes, input_shape[3])

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x, 2)
        n, channels, height, width = x.shape
        self.compute_output_shape((n, height, width, channels))
        (top, bottom), (left, right) = self.cropping
        return x[:, :, top:height - bottom, left:width - right]


@registry.register()
class UpSampling2D(_Spatial):
    """Enlarges images by whole factors.

    Args:
        size: a number or (vertical, horizontal).
        data_format: None or "channels_last".
        interpolation: "nearest" (each pixel repeated) or "bilinear" (between the centres of pixels, edges repeated).

    Raises:
        ArgumentError: a value is out of range.
        ShapeError: an input is not (batch, height, width, channels).

    Shapes: (batch, height, width, channels) → (batch, height · vertical, width · horizontal, channels).
    Keras counterpart: `keras.layers.UpSampling2D`; PyTorch's: `torch.nn.Upsample(align_corners=False)`.
    """

    def __init__(self, size: int | Sequence[int] = 2, data_format: str | None = None, interpolation: str = "nearest",
                 **kwargs: Any) -> None:
        super().__init__(data_format=data_format, **kwargs)
        kind = type(self).__name__
        self.size = tuple_of(kind, "size", size, 2)
        self.interpolation = one_of(kind, "interpolation", interpolation, ("nearest", "bilinear"))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        sizes = [None if size is None else size * factor for size, factor in zip(input_shape[1:3], self.size, strict=True)]
        return (input_shape[0], *sizes, input_shape[3])

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x, 2)
        size = [x.shape[2] * self.size[0], x.shape[3] * self.size[1]]
        corners = None if self.interpolation == "nearest" else False  # the argument has no meaning for "nearest"
        return F.interpolate(x, size=size, mode=self.interpolation, align_corners=corners)
