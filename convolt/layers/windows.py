"""Arithmetic of sliding windows, shared by convolution and pooling: Keras's paddings and the sizes that come out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.arguments import check_rank
from convolt.layers.base import Layer
from convolt.layout import Shape, outside_shape

C = TypeVar("C", bound=type)


def documented_like(base: type) -> Callable[[C], C]:
    """Class decorator that appends the base's `Args` and `Raises` to the docstring, for families that differ in rank alone."""

    def append(cls: C) -> C:
        own, shared = inspect.cleandoc(cls.__doc__ or ""), inspect.cleandoc(base.__doc__ or "")
        cls.__doc__ = f"{own}\n\n{shared[shared.index('Args:'):]}"
        return cls

    return append


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """Returns the zeros before and after an axis under `padding="same"`; the odd one goes after, as in Keras.

    Args:
        size: of the axis.
        window: extent of the kernel, holes of a dilation included.
        stride: of the window.
    """
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def extent(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Returns how far a dilated kernel reaches along each axis."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def window_sizes(layer: Layer, input_shape: Shape, window: Sequence[int], strides: Sequence[int], padding: str) -> Shape:
    """Returns the output's size along each space axis (None where the input's is unknown).

    Args:
        layer: named in the error.
        input_shape: channels last, with the batch.
        window: extent along each axis.
        strides: along each axis.
        padding: "valid", "same" or "causal".

    Raises:
        ShapeError: a window under "valid" is larger than the input.
    """
    sizes: list[int | None] = []
    for size, reach, stride in zip(input_shape[1:-1], window, strides, strict=True):
        if size is None or padding != "valid":
            sizes.append(None if size is None else -(-size // stride))
        elif reach > size:
            axes = {1: "a length", 2: "height and width", 3: "depth, height and width"}[len(window)]
            raise ShapeError(explain(
                label(layer), f"input of shape {tuple(input_shape)}",
                f"{axes} of at least {tuple(window)}, the window's extent, under padding='valid'",
                "Use padding='same', a smaller window, or less pooling and striding before this layer."))
        else:
            sizes.append((size - reach) // stride + 1)
    return tuple(sizes)


def label(layer: Layer) -> str:
    """Returns the layer's class and name for messages: `Conv2D 'conv2d_1'`."""
    return f"{type(layer).__name__} {layer.name!r}"


def channels_last_only(layer: str, data_format: Any) -> str:
    """Returns "channels_last", the one order of axes at Convolt's boundary, for None and itself.

    Raises:
        ArgumentError: any other value.
    """
    if data_format not in (None, "channels_last"):
        raise ArgumentError(explain(
            f"{layer}(data_format)", repr(data_format), "None or 'channels_last'",
            "Arrays are (batch, height, width, channels) everywhere; inside, tensors are channels-first already, "
            "so nothing is gained. Bring an NCHW array in with np.moveaxis(x, 1, -1)."))
    return "channels_last"


def known_channels(layer: Layer, input_shape: Shape, rank: int) -> int:
    """Returns the number of channels of an input with `rank` space axes.

    Raises:
        ShapeError: the rank is another, or the number of channels is unknown.
    """
    check_rank(layer, input_shape, rank + 2)
    channels = input_shape[-1]
    if channels is None:
        raise ShapeError(explain(label(layer), f"input of shape {tuple(input_shape)}", "a known number of channels",
                                 "Give the last axis of the input's shape a number."))
    return channels


def check_tensor(layer: Layer, x: Tensor, rank: int, channels: int | None = None) -> None:
    """Raises `ShapeError` unless the inside tensor `x` has `rank` space axes and, where given, `channels` channels."""
    if x.ndim != rank + 2:
        check_rank(layer, outside_shape(x), rank + 2)
    if channels is not None and x.shape[1] != channels:
        swapped = "Arrays are channels-last: is this one (batch, channels, …)?" if channels in x.shape[2:] else ""
        raise ShapeError(explain(label(layer), f"input of shape {outside_shape(x)} with {x.shape[1]} channels",
                                 f"{channels} channels, with which it was built", swapped))
