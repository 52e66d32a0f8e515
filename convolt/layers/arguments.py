"""Checks of layers' arguments and inputs, with messages that name the layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convolt.errors import ArgumentError, ShapeError, did_you_mean, explain
from convolt.layout import Shape

if TYPE_CHECKING:
    from convolt.layers.base import Layer


def check_rank(layer: Layer, input_shape: Shape, rank: int) -> None:
    """Raises `ShapeError` unless the input has `rank` axes, the batch included."""
    if len(input_shape) != rank:
        names = {2: "(batch, features)", 3: "(batch, length, channels)", 4: "(batch, height, width, channels)",
                 5: "(batch, depth, height, width, channels)"}
        raise ShapeError(explain(f"{type(layer).__name__} {layer.name!r}", f"input of shape {input_shape}",
                                 f"{rank} axes {names[rank]}", "Images without a channel axis need x[..., None]."
                                 if rank == len(input_shape) + 1 else ""))


def check_positive(layer: str, argument: str, value: Any, *, minimum: int = 1) -> int:
    """Returns `value` if it is a whole number from `minimum`, and raises `ArgumentError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ArgumentError(explain(f"{layer}({argument})", repr(value), f"a whole number from {minimum}"))
    return int(value)


def tuple_of(layer: str, argument: str, value: Any, count: int, *, minimum: int = 1) -> tuple[int, ...]:
    """Returns `value` as `count` whole numbers; one number stands for all."""
    values = (value,) * count if isinstance(value, (int, np.integer)) else tuple(value) if isinstance(value, Sequence) else None
    if values is None or len(values) != count:
        raise ArgumentError(explain(f"{layer}({argument})", repr(value), f"a whole number or {count} of them"))
    return tuple(check_positive(layer, argument, v, minimum=minimum) for v in values)


def one_of(layer: str, argument: str, value: Any, choices: Sequence[str]) -> str:
    """Returns `value` (a string in any case) if it is one of `choices`, and raises `ArgumentError` otherwise."""
    if not isinstance(value, str) or value.lower() not in choices:
        raise ArgumentError(explain(f"{layer}({argument})", repr(value), f"one of {list(choices)}",
                                    did_you_mean(str(value), choices)))
    return value.lower()
