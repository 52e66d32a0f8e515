"""Layers that arrange the same values in another shape. All act on the order of axes that the user sees, channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.base import Layer, registry
from convolt.layers.windows import channels_last_only, label
from convolt.layout import Shape, outside_shape, to_inside, to_outside


@registry.register()
class Flatten(Layer):
    """Puts all values of a sample into one row, in the order height, width, channels.

    In channels-last memory that is the order in which the values lie, so nothing is copied; and the weights of a Dense
    after it are those of Keras (PyTorch's `Flatten` goes channels first and would need them permuted).

    Args:
        data_format: None or "channels_last".

    Shapes: (batch, …) → (batch, product of the others); (batch,) → (batch, 1).
    Keras counterpart: `keras.layers.Flatten`.
    """

    def __init__(self, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_format = channels_last_only("Flatten", data_format)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        sizes = [s for s in input_shape[1:] if s is not None]
        return (input_shape[0], math.prod(sizes) if len(sizes) == len(input_shape) - 1 else None)

    def forward(self, x: Tensor) -> Tensor:
        return to_outside(x).flatten(1) if x.ndim > 1 else x.unsqueeze(1)


@registry.register()
class Reshape(Layer):
    """Gives each sample another shape.

    Args:
        target_shape: of one sample, channels last; one size may be -1 and follows from the others.

    Shapes: (batch, …) → (batch, *target_shape).

    Raises:
        ArgumentError: the target has two -1, or sizes below 1.
        ShapeError: the numbers of values differ.
    Keras counterpart: `keras.layers.Reshape`.
    """

    def __init__(self, target_shape: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        sizes = (target_shape,) if isinstance(target_shape, int) else tuple(target_shape)
        if sizes.count(-1) > 1 or any(isinstance(s, bool) or not isinstance(s, int) or (s < 1 and s != -1) for s in sizes):
            raise ArgumentError(explain("Reshape(target_shape)", repr(target_shape), "whole numbers from 1, and -1 at most once"))
        self.target_shape = sizes

    def build(self, input_shape: Shape) -> None:
        self.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        known = [s for s in input_shape[1:] if s is not None]
        if len(known) < len(input_shape) - 1:
            return (input_shape[0], *(None if s == -1 else s for s in self.target_shape))
        values, wanted = math.prod(known), math.prod(s for s in self.target_shape if s != -1)
        fits = values % wanted == 0 if -1 in self.target_shape else values == wanted
        if not fits:
            raise ShapeError(explain(f"{label(self)} (target_shape)",
                                     f"{self.target_shape} for an input of shape {tuple(input_shape)}",
                                     f"a shape of {values} values per sample"))
        return (input_shape[0], *(values // wanted if s == -1 else s for s in self.target_shape))

    def forward(self, x: Tensor) -> Tensor:
        target = self.compute_output_shape(outside_shape(x))[1:]
        return to_inside(to_outside(x).reshape(x.shape[0], *(s for s in target if s is not None)))


@registry.register()
class Permute(Layer):
    """Reorders the axes of each sample; no value moves in memory.

    Args:
        dims: the new order, counted from 1 without the batch: `(2, 1)` swaps the two axes of a sequence.

    Shapes: `Permute((2, 1))`: (batch, a, b) → (batch, b, a).

    Raises:
        ArgumentError: `dims` isn't an order of 1, 2, ….
        ShapeError: the input has another number of axes.
    Keras counterpart: `keras.layers.Permute`.
    """

    def __init__(self, dims: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dims = (dims,) if isinstance(dims, int) else tuple(dims)
        if sorted(self.dims) != list(range(1, len(self.dims) + 1)):
            raise ArgumentError(explain("Permute(dims)", repr(dims), "an order of the axes 1, 2, … (the batch is left out)"))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != len(self.dims) + 1:
            raise ShapeError(explain(f"{label(self)} (dims)", f"{self.dims} for an input of shape {tuple(input_shape)}",
                                     f"{len(input_shape) - 1} axes to reorder"))
        return (input_shape[0], *(input_shape[d] for d in self.dims))

    def build(self, input_shape: Shape) -> None:
        self.compute_output_shape(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        return to_inside(to_outside(x).permute(0, *self.dims))
