"""Initial values of weights, with Keras's names, arguments and defaults.

An initializer is called with a shape in Keras's order of axes (kernels: space, input, output) and returns a float32
tensor on the current default device; random ones draw from PyTorch's global generator, so that one seed decides all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convolt.configurable import Configurable, Registry

registry: Registry[type[Initializer]] = Registry("initializer")


class Initializer(Configurable):
    """Base of initializers: define `__call__(shape)`."""

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Returns a new float32 tensor of this shape (Keras's order of axes)."""
        raise TypeError(f"{type(self).__name__} defines no __call__(shape)")


@registry.register()
class Zeros(Initializer):
    """All zeros."""

    def __call__(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros(tuple(shape))


@registry.register()
class Ones(Initializer):
    """All ones."""

    def __call__(self, shape: Sequence[int]) -> Tensor:
        return torch.ones(tuple(shape))


def fans(shape: Sequence[int]) -> tuple[float, float]:
    """Returns (fan in, fan out) of a kernel of shape (space…, input, output)."""
    if len(shape) < 2:
        size = float(shape[0]) if shape else 1.0
        return size, size
    receptive = math.prod(shape[:-2])
    return float(shape[-2] * receptive), float(shape[-1] * receptive)


@registry.register()
class GlorotUniform(Initializer):
    """Uniform in ±sqrt(6 / (fan in + fan out)) (Glorot & Bengio 2010)."""

    def __call__(self, shape: Sequence[int]) -> Tensor:
        limit = math.sqrt(6.0 / sum(fans(shape)))
        return torch.empty(tuple(shape)).uniform_(-limit, limit)


def get(identifier: Any) -> Initializer:
    """Returns an initializer from a name, a configuration, a class or an object."""
    made: Initializer = registry.make(identifier, Initializer)
    return made
