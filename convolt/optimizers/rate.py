"""The learning rate of an optimizer: a number that can be set, or a schedule that decides."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from convolt import schedules
from convolt.errors import ArgumentTypeError, explain
from convolt.schedules import LearningRateSchedule, check_rate


class HasLearningRate:
    """Gives an optimizer `learning_rate`, `lr` and `schedule`, all on the host."""

    name: str
    steps: int
    _rate = 0.0
    _schedule: LearningRateSchedule | None = None

    @property
    def learning_rate(self) -> Any:
        """The rate of the next step as a float; may be set to anything that the constructor takes.

        Raises:
            ArgumentTypeError: set to a number while a schedule decides.
            StateError: read while the schedule does not know the length of the training.
        """
        rate = self._rate if self._schedule is None else self._schedule(self.steps)
        return check_rate(f"learning rate of {self.name} at step {self.steps}", rate)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if isinstance(value, (str, Mapping)) or callable(value):
            self._schedule = schedules.get(value, self.default_learning_rate())
        elif self._schedule is not None:
            raise ArgumentTypeError(explain(
                f"{self.name}.learning_rate", repr(value), f"a schedule, for {type(self._schedule).__name__} sets the rate",
                "Make the optimizer with a number if a callback is to change it."))
        else:
            self._rate = check_rate(f"{type(self).__name__}(learning_rate)", value)

    @property
    def lr(self) -> float:
        """Keras's short name of `learning_rate`."""
        return float(self.learning_rate)

    @lr.setter
    def lr(self, value: Any) -> None:
        self.learning_rate = value

    def set_learning_rate(self, value: float) -> None:
        """Sets the rate of the steps that follow; the next `prepare_step` fills it into its tensor on the device, in place."""
        self.learning_rate = value

    @property
    def schedule(self) -> LearningRateSchedule | None:
        """The schedule that decides the rate, or None."""
        return self._schedule

    def resolve(self, total_steps: int) -> None:
        """Tells the schedule, if there is one, how many steps the training has from step 0 on."""
        if self._schedule is not None:
            self._schedule.resolve(total_steps)

    def default_learning_rate(self) -> float:
        """Returns the constructor's default, the peak of a schedule that is given as a word."""
        rate = inspect.signature(type(self)).parameters["learning_rate"].default
        return rate if isinstance(rate, float) else 0.001
