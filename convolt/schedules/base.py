"""`LearningRateSchedule`: the base of all schedules, and the checks of their arguments."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

from convolt.configurable import Configurable, Registry
from convolt.errors import ArgumentError, ArgumentTypeError, StateError, explain

registry: Registry[type[LearningRateSchedule]] = Registry("learning-rate schedule")
"""Every schedule that can be made from a configuration."""


def check_rate(thing: str, value: Any) -> float:
    """Returns a learning rate as float; `ArgumentError` unless it is a finite number from 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or float(value) < 0:
        raise ArgumentError(explain(thing, value if isinstance(value, numbers.Real) else repr(value),
                                    "a finite number from 0", "Try learning_rate=0.001."))
    return float(value)


def check_steps(thing: str, value: Any, *, minimum: int = 1) -> Any:
    """Returns a number of steps, or None; Keras takes fractions of a step as well."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value < minimum:
        raise ArgumentError(explain(thing, repr(value), f"a number of steps from {minimum}, or None for the whole training"))
    return value


def check_number(thing: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns `value` as float; `ArgumentError` unless it is a finite number from `low` to `high`."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not real or not low <= float(value) <= high:
        span = "" if math.isinf(low) else f" from {low:g}" + ("" if math.isinf(high) else f" to {high:g}")
        raise ArgumentError(explain(thing, repr(value), f"a finite number{span}"))
    return float(value)


class LearningRateSchedule(Configurable):
    """Base of schedules: define `__call__(step)`.

    Keras counterpart: `keras.optimizers.schedules.LearningRateSchedule`.

    >>> class Halving(LearningRateSchedule):
    ...     def __call__(self, step):
    ...         return 0.1 * 0.5 ** (step // 1000)
    >>> Halving()(2000)
    0.025
    """

    resolved_steps: int | None = None
    """Steps of the whole training, once `resolve` has told it."""

    def __call__(self, step: int) -> float:
        """Returns the learning rate after `step` finished steps."""
        raise ArgumentTypeError(explain(type(self).__name__, "a schedule without __call__", "a method `__call__(self, step)`"))

    def resolve(self, total_steps: int) -> None:
        """Tells the schedule how many steps the whole training has; lengths that were left None follow from it.

        Raises:
            ArgumentError: `total_steps` is not a whole number from 1.
        """
        if isinstance(total_steps, bool) or not isinstance(total_steps, numbers.Integral) or total_steps < 1:
            raise ArgumentError(explain("resolve(total_steps)", repr(total_steps), "a whole number from 1"))
        self.resolved_steps = int(total_steps)

    def _span(self, steps: float | None) -> float:
        """Returns `steps`, or the length of the training if it is None."""
        if steps is not None:
            return steps
        if self.resolved_steps is None:
            raise StateError(explain(type(self).__name__, "a schedule without length", "the number of training steps",
                                     "`fit` sets it; elsewhere call resolve(total_steps) or give the length."))
        return self.resolved_steps


class FunctionSchedule(LearningRateSchedule):
    """A plain function as schedule: of the step number, or of nothing as Keras allows."""

    def __init__(self, function: Callable[..., float]) -> None:
        self.function = function
        self._takes_step = bool(inspect.signature(function).parameters)

    def __call__(self, step: int) -> float:
        return float(self.function(step) if self._takes_step else self.function())


def half_cosine(fraction: float, alpha: float) -> float:
    """Returns the height of a half cosine from 1 down to `alpha`."""
    return (1.0 - alpha) * 0.5 * (1.0 + math.cos(math.pi * fraction)) + alpha
