"""Penalties on weights and activities, with Keras's names, arguments and defaults."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from convolt.configurable import Configurable, Registry

registry: Registry[type[Regularizer]] = Registry("regularizer")


class Regularizer(Configurable):
    """Base of regularizers: define `__call__(x)`."""

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the penalty as a scalar tensor."""
        raise TypeError(f"{type(self).__name__} defines no __call__(x)")


@registry.register("l2")
class L2(Regularizer):
    """`l2 · Σ x²`."""

    def __init__(self, l2: float = 0.01) -> None:
        self.l2 = l2

    def __call__(self, x: Tensor) -> Tensor:
        return self.l2 * x.square().sum()


def get(identifier: Any) -> Regularizer | None:
    """Returns a regularizer from a name, a configuration, a class or an object; None stays None."""
    if identifier is None:
        return None
    made: Regularizer = registry.make(identifier, Regularizer)
    return made
