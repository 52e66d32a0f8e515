"""Penalties on weights and activities, with Keras's names, arguments and defaults.

A regularizer is called with a tensor (weights: in Keras's order of axes) and returns a scalar that joins the training loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.configurable import Configurable, Registry, to_json
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.missing import explain_missing_names

registry: Registry[type[Regularizer]] = Registry("regularizer")

SMALLEST_NORM = 1e-7
"""Rows shorter than this are not scaled up to length one (Keras's `epsilon`)."""


class Regularizer(Configurable):
    """Base of regularizers: define `__call__(x)`."""

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the penalty as a scalar tensor."""
        raise TypeError(f"{type(self).__name__} defines no __call__(x)")


def check_factor(owner: str, argument: str, value: Any) -> float:
    """Returns `value` if it is a finite number from 0, and raises `ArgumentError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ArgumentError(explain(f"{owner}({argument})", value, "a finite number from 0", "Try 1e-4."))
    return float(value)


@registry.register("l1")
class L1(Regularizer):
    """`l1 · Σ |x|`."""

    def __init__(self, l1: float = 0.01) -> None:
        self.l1 = check_factor("L1", "l1", 0.01 if l1 is None else l1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.l1 * x.abs().sum()


@registry.register("l2")
class L2(Regularizer):
    """`l2 · Σ x²`."""

    def __init__(self, l2: float = 0.01) -> None:
        self.l2 = check_factor("L2", "l2", 0.01 if l2 is None else l2)

    def __call__(self, x: Tensor) -> Tensor:
        return self.l2 * x.square().sum()


@registry.register("l1_l2")
class L1L2(Regularizer):
    """`l1 · Σ |x| + l2 · Σ x²`; both factors are 0 by default, as in Keras."""

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1 = check_factor("L1L2", "l1", 0.0 if l1 is None else l1)
        self.l2 = check_factor("L1L2", "l2", 0.0 if l2 is None else l2)

    def __call__(self, x: Tensor) -> Tensor:
        penalty = x.new_zeros(())
        if self.l1:
            penalty = penalty + self.l1 * x.abs().sum()
        if self.l2:
            penalty = penalty + self.l2 * x.square().sum()
        return penalty


@registry.register()
class OrthogonalRegularizer(Regularizer):
    """Mean of the absolute cosines between different rows (or columns) of a matrix, times `factor`.

    Args:
        factor: finite number from 0.
        mode: "rows" or "columns".

    Raises:
        ArgumentError: an argument has another value.
        ShapeError: (when called) the weight is not a matrix.
    """

    def __init__(self, factor: float = 0.01, mode: str = "rows") -> None:
        self.factor = check_factor("OrthogonalRegularizer", "factor", factor)
        if mode not in ("rows", "columns"):
            raise ArgumentError(explain("OrthogonalRegularizer(mode)", mode, "'rows' or 'columns'"))
        self.mode = mode

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            raise ShapeError(explain("OrthogonalRegularizer", f"a weight of shape {tuple(x.shape)}", "a matrix, with two axes"))
        rows = x if self.mode == "rows" else x.T
        rows = F.normalize(rows, dim=1, eps=SMALLEST_NORM)
        size = rows.shape[0]
        cosines = (rows @ rows.T) * (1.0 - torch.eye(size, dtype=x.dtype, device=x.device))
        pairs = size * (size - 1) / 2
        return self.factor * 0.5 * cosines.abs().sum() / pairs if pairs else x.new_zeros(())


class FromFunction(Regularizer):
    """Wraps the user's `function(x)`; cannot be made again from a configuration."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


def get(identifier: Any) -> Regularizer | None:
    """Returns a regularizer from a name, a configuration, a class, an object or a function; None stays None."""
    if identifier is None:
        return None
    is_function = callable(identifier) and not isinstance(identifier, (type, Regularizer))
    made: Regularizer = FromFunction(identifier) if is_function else registry.make(identifier, Regularizer)
    return made


deserialize = get
serialize = to_json

# Keras's other spelling of each class, as in `regularizers.l2(1e-4)`.
l1, l2, l1_l2, orthogonal_regularizer = L1, L2, L1L2, OrthogonalRegularizer


explain_missing_names(__name__)
