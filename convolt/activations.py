"""Activation functions by name, with Keras's names and definitions, on tensors whose channel axis is at index 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.configurable import Registry
from convolt.errors import ArgumentTypeError, explain
from convolt.layout import channel_axis

Activation = Callable[[Tensor], Tensor]
registry: Registry[Activation] = Registry("activation")


@registry.register()
def linear(x: Tensor) -> Tensor:
    """Returns `x`."""
    return x


@registry.register()
def relu(x: Tensor) -> Tensor:
    """Returns `max(x, 0)`."""
    return F.relu(x)


@registry.register()
def softmax(x: Tensor) -> Tensor:
    """Returns `exp(x) / Σ exp(x)` over the channel axis.

    The result remembers `x` in its attribute `logits`, so that crossentropy can be computed on it with full precision.
    """
    probabilities = torch.softmax(x, dim=channel_axis(x.ndim))
    probabilities.logits = x  # type: ignore[attr-defined]
    return probabilities


def get(identifier: Any) -> Activation:
    """Returns an activation from a name, None (linear) or a callable."""
    if identifier is None:
        return linear
    if isinstance(identifier, str):
        return registry.find(identifier)
    if callable(identifier):
        return identifier  # type: ignore[no-any-return]
    raise ArgumentTypeError(explain("activation", type(identifier).__name__, "a name, a function or None"))
