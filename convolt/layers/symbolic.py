"""Symbolic tensors: what `Input` returns and what a layer returns when called on one.

Calling a layer on a `SymbolicTensor` computes nothing. It records a `Node` (which layer, on what) from which
`convolt.models.Functional` makes a `torch.fx` graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from convolt.errors import ArgumentError, ArgumentTypeError, explain
from convolt.layout import Shape

if TYPE_CHECKING:
    from convolt.layers.base import Layer


class Node:
    """One call of one layer: its arguments, with symbolic tensors in place of tensors."""

    def __init__(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.layer = layer
        self.args = args
        self.kwargs = kwargs

    @property
    def inputs(self) -> list[SymbolicTensor]:
        """The symbolic tensors among the arguments, in order."""
        return list(find_symbolic((self.args, self.kwargs)))


class SymbolicTensor:
    """A tensor that is known by its shape alone.

    Args:
        shape: with the batch axis first (`None`) and channels last.
        dtype: of the values, "float32" or an integer type.
        node: the call that makes it; None for an `Input`.
        index: which of the call's outputs it is; None where the call returns one tensor.
        name: of an `Input`.
    """

    def __init__(self, shape: Shape, dtype: str = "float32", node: Node | None = None, index: int | None = None,
                 name: str | None = None) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self.node = node
        self.index = index
        self.name = name

    def __repr__(self) -> str:
        made_by = f"output of {self.node.layer.name!r}" if self.node else f"Input {self.name!r}"
        return f"<SymbolicTensor shape={self.shape} dtype={self.dtype}, {made_by}>"

    @property
    def ndim(self) -> int:
        """Number of axes, the batch included."""
        return len(self.shape)

    def __add__(self, other: Any) -> SymbolicTensor:
        return _combine("Add", self, other, scale=1.0, offset=other)

    def __radd__(self, other: Any) -> SymbolicTensor:
        return _combine("Add", self, other, scale=1.0, offset=other)

    def __sub__(self, other: Any) -> SymbolicTensor:
        return _combine("Subtract", self, other, scale=1.0, offset=None if _is_symbolic(other) else -other)

    def __rsub__(self, other: Any) -> SymbolicTensor:
        return _combine("Subtract", self, other, scale=-1.0, offset=other)

    def __neg__(self) -> SymbolicTensor:
        return _combine("Multiply", self, -1.0, scale=-1.0, offset=0.0)

    def __mul__(self, other: Any) -> SymbolicTensor:
        return _combine("Multiply", self, other, scale=other, offset=0.0)

    def __rmul__(self, other: Any) -> SymbolicTensor:
        return _combine("Multiply", self, other, scale=other, offset=0.0)

    def __truediv__(self, other: Any) -> SymbolicTensor:
        if _is_symbolic(other):
            raise ArgumentTypeError(explain("symbolic / symbolic", repr(other), "a number", "Write a Layer for it."))
        return _combine("Multiply", self, other, scale=1.0 / other, offset=0.0)

    def __bool__(self) -> bool:
        raise ArgumentTypeError(
            explain("a symbolic tensor's truth", repr(self), "a tensor with values",
                    "A functional model cannot branch on values; subclass convolt.Model instead."))


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, SymbolicTensor)


def _combine(merge: str, left: SymbolicTensor, right: Any, scale: Any, offset: Any) -> SymbolicTensor:
    """Records `merge` of two symbolic tensors, or a `Rescaling` where the other side is a number."""
    from convolt.layers import registry

    if _is_symbolic(right):
        result = registry.find(merge)()([left, right])
    elif isinstance(right, (int, float)):
        result = registry.find("Rescaling")(scale=float(scale), offset=float(offset))(left)
    else:
        raise ArgumentTypeError(explain(f"{merge} on a symbolic tensor", type(right).__name__, "a symbolic tensor or a number"))
    assert isinstance(result, SymbolicTensor)
    return result


def find_symbolic(values: Any) -> Iterator[SymbolicTensor]:
    """Yields the symbolic tensors in nested tuples, lists and mappings, in order."""
    if isinstance(values, SymbolicTensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from find_symbolic(value)
    elif isinstance(values, dict):
        yield from find_symbolic(list(values.values()))


def map_structure(function: Callable[[Any], Any], values: Any) -> Any:
    """Applies `function` to the leaves of nested tuples, lists and mappings."""
    if isinstance(values, (list, tuple)):
        return type(values)(map_structure(function, value) for value in values)
    if isinstance(values, dict):
        return {key: map_structure(function, value) for key, value in values.items()}
    return function(values)


def leaves(values: Any) -> Iterator[Any]:
    """Yields the leaves of nested tuples, lists and mappings, in order."""
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from leaves(value)
    elif isinstance(values, dict):
        yield from leaves(list(values.values()))
    else:
        yield values


def shapes_of(values: Any) -> Any:
    """Returns `values` with each symbolic tensor replaced by its shape."""
    return map_structure(lambda value: value.shape if isinstance(value, SymbolicTensor) else value, values)


_input_count = 0


def Input(shape: Sequence[int | None] | None = None, batch_size: int | None = None, dtype: str = "float32",  # noqa: N802
          name: str | None = None, *, batch_shape: Sequence[int | None] | None = None) -> SymbolicTensor:
    """Starts a functional model, or fixes the input shape of a `Sequential`.

    Args:
        shape: of one sample, channels last, e.g. `(28, 28, 1)`; `None` for an axis of any size.
        batch_size: fixed batch size; None for any.
        dtype: type of the values that the layer after it receives.
        name: by which `fit` and `predict` address it in a mapping of inputs.
        batch_shape: shape with the batch axis, in place of `shape`.

    Raises:
        ArgumentError: the shape is not made of whole numbers from 1 (or None).

    Keras counterpart: `keras.Input`.
    """
    global _input_count
    if batch_shape is not None:
        batch_size, shape = batch_shape[0], batch_shape[1:]
    if shape is None:
        raise ArgumentError(explain("Input(shape)", None, "the shape of one sample", "For example Input((28, 28, 1))."))
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(size is not None and (not isinstance(size, int) or size < 1) for size in sizes):
        raise ArgumentError(explain("Input(shape)", repr(shape), "whole numbers from 1, or None",
                                    "Leave the batch axis out: Input((28, 28, 1)) for 28×28 grey pictures."))
    if name is None:
        name = "input" if _input_count == 0 else f"input_{_input_count}"
        _input_count += 1
    return SymbolicTensor((batch_size, *sizes), dtype=dtype, name=name)
