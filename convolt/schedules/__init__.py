"""Learning-rate schedules: a schedule is a function of the step number.

`schedule(step)` is the rate of the step that follows `step` finished ones, a Python float computed on the host in
double precision. Keras's names, arguments and defaults, also public as `convolt.optimizers.schedules`.

A length may be None: then the schedule spans the whole training, whose number of steps `fit` tells it with
`resolve(total_steps)`. So the shortest way to a cosine is a word, with the optimizer's default rate as its peak:

>>> from convolt.optimizers import Adam
>>> optimizer = Adam(learning_rate="cosine")
>>> optimizer.resolve(total_steps=100)
>>> optimizer.learning_rate
0.001
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convolt.errors import ArgumentError, did_you_mean, explain
from convolt.missing import explain_missing_names
from convolt.schedules.base import FunctionSchedule, LearningRateSchedule, check_number, check_rate, registry
from convolt.schedules.cycles import OneCycle, WarmupCosine
from convolt.schedules.decays import (
    Constant,
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    PiecewiseConstantDecay,
    PolynomialDecay,
    StepDecay,
)

by_word: dict[str, Callable[[float], LearningRateSchedule]] = {
    "constant": Constant,
    "cosine": CosineDecay,
    "warmup_cosine": WarmupCosine,
    "one_cycle": OneCycle,
    "linear": lambda rate: PolynomialDecay(rate, None, 0.0),
    "polynomial": lambda rate: PolynomialDecay(rate, None, 0.0, power=2.0),
    "step": StepDecay,
    "exponential": lambda rate: ExponentialDecay(rate, None, 0.01),
}
"""What a word as `learning_rate` means: a schedule over the whole training, with this rate as its peak.
`exponential` falls to a hundredth."""


def get(identifier: Any, learning_rate: float = 0.001) -> LearningRateSchedule:
    """Returns a schedule from a word of `by_word`, a configuration, a function or an object.

    Args:
        identifier: `"cosine"`, `{"class_name", "config"}`, a function of the step, or a schedule.
        learning_rate: the peak of a schedule that is given as a word.

    Raises:
        ArgumentError: the word is unknown; the nearest is named.
        ArgumentTypeError: `identifier` is none of these.
    """
    if isinstance(identifier, str):
        if identifier not in by_word:
            raise ArgumentError(explain("learning_rate", repr(identifier), "a number, a schedule or the word for one",
                                        did_you_mean(identifier, by_word)))
        return by_word[identifier](learning_rate)
    if callable(identifier) and not isinstance(identifier, (LearningRateSchedule, type)):
        return FunctionSchedule(identifier)
    made: LearningRateSchedule = registry.make(identifier, LearningRateSchedule)
    return made


def serialize(learning_rate_schedule: LearningRateSchedule) -> dict[str, Any]:
    """Returns `{"class_name", "config"}` of a schedule."""
    return {"class_name": type(learning_rate_schedule).__name__, "config": learning_rate_schedule.get_config()}


def deserialize(config: dict[str, Any]) -> LearningRateSchedule:
    """Returns the schedule that `serialize` described."""
    return get(config)


__all__ = [
    "Constant",
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "FunctionSchedule",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "OneCycle",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "StepDecay",
    "WarmupCosine",
    "by_word",
    "check_number",
    "check_rate",
    "deserialize",
    "get",
    "registry",
    "serialize",
]

explain_missing_names(__name__)
