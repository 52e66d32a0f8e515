"""Layers that make one tensor of a list of tensors, and their functional forms.

Inputs are broadcast as in Keras: those with fewer axes get axes of size one after the batch, and axes of size one are
stretched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.base import Layer, registry
from convolt.layers.windows import label
from convolt.layout import Shape, inside_axis, outside_shape, to_inside, to_outside


class Merge(Layer):
    """Base of the merging layers: `merge` gets inside tensors with equal numbers of axes."""

    input_count: int | None = None
    """How many inputs there must be; None: one or more."""

    def build(self, *input_shapes: Any) -> None:
        self.compute_output_shape(self._checked_list(input_shapes))

    def _checked_list(self, input_shapes: tuple[Any, ...]) -> list[Shape]:
        """Returns the shapes, and raises `ShapeError` unless one list of inputs was given, of the right length."""
        is_list = len(input_shapes) == 1 and isinstance(input_shapes[0], (list, tuple)) and len(input_shapes[0]) > 0 \
            and all(isinstance(shape, (list, tuple)) for shape in input_shapes[0])
        wanted = f"one list of {self.input_count or 'one or more'} inputs"
        if not is_list:
            raise ShapeError(explain(label(self), f"inputs of shapes {input_shapes}", wanted, "Call it as layer([a, b])."))
        shapes = [tuple(shape) for shape in input_shapes[0]]
        if self.input_count is not None and len(shapes) != self.input_count:
            raise ShapeError(explain(label(self), f"{len(shapes)} inputs", wanted))
        return shapes

    def compute_output_shape(self, input_shapes: Sequence[Shape]) -> Shape:
        shapes = self._checked_list((input_shapes,))
        rank = max(len(shape) for shape in shapes)
        same_rank = [(*shape[:1], *[1] * (rank - len(shape)), *shape[1:]) for shape in shapes]
        batches = {shape[0] for shape in shapes} - {None}
        if len(batches) > 1:
            raise ShapeError(explain(label(self), f"inputs of shapes {shapes}", "the same batch size"))
        sizes = [self._broadcast_size(column, shapes) for column in zip(*(shape[1:] for shape in same_rank), strict=True)]
        return (batches.pop() if batches else None, *sizes)

    def _broadcast_size(self, column: tuple[int | None, ...], shapes: list[Shape]) -> int | None:
        larger = {size for size in column if size != 1}
        if len(larger - {None}) > 1:
            raise ShapeError(explain(label(self), f"inputs of shapes {shapes}", "shapes that can be broadcast: along each axis "
                                     "one size, or 1"))
        if None in larger:
            return None
        return larger.pop() if larger else 1

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        usual = len(inputs) == (self.input_count or len(inputs)) > 0 and all(x.shape == inputs[0].shape for x in inputs)
        if not (usual or torch.compiler.is_exporting()):  # built for any batch size, it may be called on other shapes than before
            self.compute_output_shape([outside_shape(x) for x in inputs])
        rank = max(x.ndim for x in inputs)
        return self.merge([_with_rank(x, rank) for x in inputs])

    def compute_mask(self, inputs: Sequence[Tensor], mask: Any = None) -> Tensor | None:
        """Returns the steps that count in one input or another; None unless each has a mask."""
        if not mask or any(m is None for m in mask):
            return None
        joined: Tensor = functools.reduce(torch.logical_or, mask)
        return joined

    def merge(self, inputs: list[Tensor]) -> Tensor:
        """Returns one tensor; defined by each layer."""
        raise TypeError(f"{type(self).__name__} defines no merge(inputs)")


def _with_rank(x: Tensor, rank: int) -> Tensor:
    """Returns `x` with axes of size one after the batch, as the user sees it, up to `rank` axes."""
    if x.ndim == rank:
        return x
    y = to_outside(x)
    return to_inside(y[(slice(None), *[None] * (rank - x.ndim))])


@registry.register()
class Add(Merge):
    """Adds the inputs. Shapes: a list of broadcastable inputs. Keras counterpart: `keras.layers.Add`."""

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return reduce(torch.add, inputs)


@registry.register()
class Subtract(Merge):
    """Subtracts the second of two inputs from the first. Keras counterpart: `keras.layers.Subtract`."""

    input_count = 2

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return inputs[0] - inputs[1]


@registry.register()
class Multiply(Merge):
    """Multiplies the inputs, value by value. Keras counterpart: `keras.layers.Multiply`."""

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return reduce(torch.mul, inputs)


@registry.register()
class Average(Merge):
    """Averages the inputs. Keras counterpart: `keras.layers.Average`."""

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return reduce(torch.add, inputs) / len(inputs)


@registry.register()
class Maximum(Merge):
    """Takes the largest of the inputs' values. Keras counterpart: `keras.layers.Maximum`."""

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return reduce(torch.maximum, inputs)


@registry.register()
class Minimum(Merge):
    """Takes the smallest of the inputs' values. Keras counterpart: `keras.layers.Minimum`."""

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return reduce(torch.minimum, inputs)


@registry.register()
class Concatenate(Merge):
    """Puts the inputs one after the other along an axis.

    Args:
        axis: channels by default.

    Shapes: a list of inputs that are equal but for the axis. Keras counterpart: `keras.layers.Concatenate`.
    """

    def __init__(self, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = int(axis)

    def compute_output_shape(self, input_shapes: Sequence[Shape]) -> Shape:
        shapes = self._checked_list((input_shapes,))
        inside_axis(self.axis, len(shapes[0]))
        axis = self.axis % len(shapes[0])
        columns = list(zip(*shapes, strict=False))
        fits = len({len(shape) for shape in shapes}) == 1 and all(
            i == axis or len({size for size in column if size is not None}) <= 1 for i, column in enumerate(columns))
        if not fits:
            raise ShapeError(explain(label(self), f"inputs of shapes {shapes}", f"the same shape but for axis {self.axis}"))
        sizes = [next((size for size in column if size is not None), None) for column in columns]
        along = [size for size in columns[axis] if size is not None]
        sizes[axis] = sum(along) if len(along) == len(shapes) else None
        return tuple(sizes)

    def compute_mask(self, inputs: Sequence[Tensor], mask: Any = None) -> Tensor | None:
        """Returns the masks joined along the axis of steps, or along channels the steps that count in one of them."""
        if not mask or all(m is None for m in mask):
            return None
        shapes = [to_outside(x).shape for x in inputs]
        full = [torch.ones(shape, dtype=torch.bool, device=x.device) if m is None else
                m.reshape(*m.shape, *(1,) * (len(shape) - m.ndim)).expand(shape)
                for x, m, shape in zip(inputs, mask, shapes, strict=True)]
        return torch.cat(full, self.axis).any(-1)

    def merge(self, inputs: list[Tensor]) -> Tensor:
        return torch.cat(inputs, inside_axis(self.axis, inputs[0].ndim))


@registry.register()
class Dot(Merge):
    """Sums the products of two inputs along an axis of each.

    Args:
        axes: one axis for both inputs, or one for each; not the batch.
        normalize: scale both to length one along the axis first, which gives the cosine.

    Shapes: (batch, a…, k), (batch, k, b…) with `axes=(-1, 1)` → (batch, a…, b…), and (batch, 1) where nothing is left.
    Keras counterpart: `keras.layers.Dot`.
    """

    input_count = 2

    def __init__(self, axes: int | Sequence[int], normalize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        both = (axes, axes) if isinstance(axes, int) else tuple(axes)
        if len(both) != 2 or any(isinstance(a, bool) or not isinstance(a, int) or a == 0 for a in both):
            raise ArgumentError(explain("Dot(axes)", repr(axes), "one or two whole numbers, and not 0, which is the batch"))
        self.axes = axes if isinstance(axes, int) else both
        self.normalize = normalize
        self._both = both

    def _positions(self, left: int, right: int) -> tuple[int, int]:
        """Returns where the two axes lie in inputs with `left` and `right` axes."""
        for axis, ndim in zip(self._both, (left, right), strict=True):
            inside_axis(axis, ndim)
        return self._both[0] % left, self._both[1] % right

    def compute_output_shape(self, input_shapes: Sequence[Shape]) -> Shape:
        left, right = self._checked_list((input_shapes,))
        i, j = self._positions(len(left), len(right))
        if left[i] != right[j]:
            raise ShapeError(explain(label(self), f"inputs of shapes {left} and {right}",
                                     f"the same size of axis {i} and axis {j}, along which products are summed"))
        rest = (*left[1:i], *left[i + 1:], *right[1:j], *right[j + 1:])
        return (left[0], *(rest or (1,)))

    def compute_mask(self, inputs: Sequence[Tensor], mask: Any = None) -> None:
        """Returns None: sums of products have no steps."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        left, right = (to_outside(x) for x in inputs)
        i, j = self._positions(left.ndim, right.ndim)
        if self.normalize:
            left, right = F.normalize(left, dim=i, eps=1e-7), F.normalize(right, dim=j, eps=1e-7)
        left, right = left.movedim(i, -1), right.movedim(j, 1)
        product = torch.bmm(left.flatten(1, -2) if left.ndim > 2 else left.unsqueeze(1),
                            right.flatten(2) if right.ndim > 2 else right.unsqueeze(2))
        rest = (*left.shape[1:-1], *right.shape[2:])
        return to_inside(product.reshape(product.shape[0], *(rest or (1,))))


# -- functional forms --------------------------------------------------------------------------------------------------


def _functional(layer: type[Merge]) -> Callable[..., Any]:
    def call(inputs: Sequence[Any], **kwargs: Any) -> Any:
        return layer(**kwargs)(list(inputs))

    call.__name__ = call.__qualname__ = layer.__name__.lower()
    call.__doc__ = f"Calls a new `{layer.__name__}(**kwargs)` on the list of inputs."
    return call


add = _functional(Add)
subtract = _functional(Subtract)
multiply = _functional(Multiply)
average = _functional(Average)
maximum = _functional(Maximum)
minimum = _functional(Minimum)


def concatenate(inputs: Sequence[Any], axis: int = -1, **kwargs: Any) -> Any:
    """Calls a new `Concatenate(axis, **kwargs)` on the list of inputs."""
    return Concatenate(axis=axis, **kwargs)(list(inputs))


def dot(inputs: Sequence[Any], axes: int | Sequence[int] = -1, **kwargs: Any) -> Any:
    """Calls a new `Dot(axes, **kwargs)` on the list of inputs."""
    return Dot(axes=axes, **kwargs)(list(inputs))
