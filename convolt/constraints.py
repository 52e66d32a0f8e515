"""Projections of weights after each update, with Keras's names, arguments and defaults.

A constraint is called with a weight, in Keras's order of axes, and returns what takes its place. A layer is given one
as `kernel_constraint`, `bias_constraint` and so on; `gather` finds them all, once, and `apply` runs them after an
optimizer's update, on the device alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convolt.configurable import Configurable, Registry, to_json
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.missing import explain_missing_names

registry: Registry[type[Constraint]] = Registry("constraint")

EPSILON = 1e-7
"""Added to norms before a division (Keras's `epsilon`)."""


class Constraint(Configurable):
    """Base of constraints: define `__call__(w)`, of tensors alone; as it is, a weight stays what it is."""

    def __call__(self, w: Tensor) -> Tensor:
        """Returns the projected weight, of the same shape."""
        return w


def check_bound(owner: str, argument: str, value: Any, most: float = math.inf) -> float:
    """Returns `value` if it is a finite number from 0 to `most`, and raises `ArgumentError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= most:
        limit = f" to {most:g}" if most < math.inf else ""
        raise ArgumentError(explain(f"{owner}({argument})", repr(value), f"a finite number from 0{limit}"))
    return value


class _Norm(Constraint):
    """What the constraints of norms share: the axes over which a norm is taken."""

    axis: int | list[int]

    def _keep_axis(self, axis: int | Sequence[int]) -> None:
        axes = [axis] if isinstance(axis, int) else axis
        if isinstance(axes, str) or not axes or any(isinstance(a, bool) or not isinstance(a, int) for a in axes):
            raise ArgumentError(explain(f"{type(self).__name__}(axis)", repr(axis), "a whole number or several",
                                        "axis=0 for Dense, [0, 1, 2] for Conv2D."))
        self.axis = axis if isinstance(axis, int) else list(axes)

    def _norms(self, w: Tensor) -> Tensor:
        axes = [self.axis] if isinstance(self.axis, int) else self.axis
        if any(not -w.ndim <= axis < w.ndim for axis in axes):
            raise ShapeError(explain(f"{type(self).__name__}(axis)", self.axis,
                                     f"axes of the weight, whose shape is {tuple(w.shape)} (in Keras's order)"))
        return w.square().sum(axes, keepdim=True).sqrt()


@registry.register()
class MaxNorm(_Norm):
    """Scales down what is longer than `max_value`.

    Args:
        max_value: largest norm, from 0.
        axis: one or several, in Keras's order, over which a norm is taken: 0 for the weights of each unit of a `Dense`,
            `[0, 1, 2]` for each filter of a `Conv2D`.

    Keras counterpart: `keras.constraints.MaxNorm`. Source: Srivastava et al. 2014.
    """

    def __init__(self, max_value: float = 2, axis: int | Sequence[int] = 0) -> None:
        self.max_value = check_bound("MaxNorm", "max_value", max_value)
        self._keep_axis(axis)

    def __call__(self, w: Tensor) -> Tensor:
        norms = self._norms(w)
        return w * (norms.clamp(max=self.max_value) / (EPSILON + norms))


@registry.register()
class UnitNorm(_Norm):
    """Scales to length one.

    Args:
        axis: as in `MaxNorm`.

    Keras counterpart: `keras.constraints.UnitNorm`.
    """

    def __init__(self, axis: int | Sequence[int] = 0) -> None:
        self._keep_axis(axis)

    def __call__(self, w: Tensor) -> Tensor:
        return w / (EPSILON + self._norms(w))


@registry.register()
class NonNeg(Constraint):
    """Sets negative values to zero. Keras counterpart: `keras.constraints.NonNeg`."""

    def __call__(self, w: Tensor) -> Tensor:
        return w.clamp(min=0)


@registry.register()
class MinMaxNorm(_Norm):
    """Scales so that norms come between two bounds, at once or by and by.

    Args:
        min_value, max_value: the bounds.
        rate: share of the way to the bound that one step goes, 0 to 1.
        axis: as in `MaxNorm`.

    Keras counterpart: `keras.constraints.MinMaxNorm`.
    """

    def __init__(self, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: int | Sequence[int] = 0) -> None:
        self.min_value = check_bound("MinMaxNorm", "min_value", min_value)
        self.max_value = check_bound("MinMaxNorm", "max_value", max_value)
        if self.min_value > self.max_value:
            raise ArgumentError(explain("MinMaxNorm", f"min_value={min_value} above max_value={max_value}", "min_value up to max_value"))
        self.rate = check_bound("MinMaxNorm", "rate", rate, 1.0)
        self._keep_axis(axis)

    def __call__(self, w: Tensor) -> Tensor:
        norms = self._norms(w)
        desired = self.rate * norms.clamp(self.min_value, self.max_value) + (1 - self.rate) * norms
        return w * (desired / (EPSILON + norms))


class FromFunction(Constraint):
    """Wraps the user's `function(w)`; cannot be made again from a configuration."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, w: Tensor) -> Tensor:
        return self.function(w)


def get(identifier: Any) -> Constraint | None:
    """Returns a constraint from a name, a configuration, a class, an object or a function; None stays None."""
    if identifier is None:
        return None
    is_function = callable(identifier) and not isinstance(identifier, (type, Constraint))
    made: Constraint = FromFunction(identifier) if is_function else registry.make(identifier, Constraint)
    return made


deserialize = get
serialize = to_json

# Keras's other spelling of each class, as in `constraints.max_norm(3)`.
max_norm, unit_norm, non_neg, min_max_norm = MaxNorm, UnitNorm, NonNeg, MinMaxNorm


# -- in training -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constrained:
    """A weight with its constraint.

    Attributes:
        weight: in PyTorch's order of axes.
        constraint: sees and returns the weight in Keras's.
        split: shape with the axes apart that PyTorch merges.
        order: permutation from `split` to Keras's order of axes.
    """

    weight: Tensor
    constraint: Constraint
    split: torch.Size
    order: tuple[int, ...]


def gather(model: nn.Module) -> list[Constrained]:
    """Returns what is constrained in a model and its parts; empty for most, for which `apply` then costs nothing."""
    return [entry for module in model.modules() for entry in getattr(module, "constrained_weights", ())]


@torch.no_grad()
def apply(constrained: Sequence[Constrained]) -> None:
    """Projects weights that are trained, in place; nothing is read from the device, so that a step can be captured."""
    for entry in constrained:
        if entry.weight.requires_grad:
            weight = entry.weight.view(entry.split).permute(entry.order)
            weight.copy_(entry.constraint(weight))


explain_missing_names(__name__)
