"""Rates that fall: Keras's schedules and PyTorch's `StepLR`."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from convolt.errors import ArgumentError, explain
from convolt.schedules.base import LearningRateSchedule, check_number, check_rate, check_steps, half_cosine, registry


@registry.register()
class Constant(LearningRateSchedule):
    """The same rate at every step. PyTorch counterpart: `ConstantLR` with factor 1."""

    def __init__(self, learning_rate: float = 0.001) -> None:
        self.learning_rate = check_rate("Constant(learning_rate)", learning_rate)

    def __call__(self, step: int) -> float:
        return self.learning_rate


class _Decay(LearningRateSchedule):
    """What the schedules have in common that fall from `initial_learning_rate` over `decay_steps`."""

    def __init__(self, initial_learning_rate: float, decay_steps: float | None, name: str | None) -> None:
        kind = type(self).__name__
        self.initial_learning_rate = check_rate(f"{kind}(initial_learning_rate)", initial_learning_rate)
        self.decay_steps = check_steps(f"{kind}(decay_steps)", decay_steps)
        self.name = name or kind


class _StaircaseDecay(_Decay):
    """Decays by a rate per `decay_steps`, smoothly or in stairs."""

    def __init__(self, initial_learning_rate: float, decay_steps: float | None, decay_rate: float, staircase: bool = False,
                 name: str | None = None) -> None:
        super().__init__(initial_learning_rate, decay_steps, name)
        self.decay_rate = check_number(f"{type(self).__name__}(decay_rate)", decay_rate, 0.0)
        self.staircase = staircase

    def _fraction(self, step: int) -> float:
        fraction = step / self._span(self.decay_steps)
        return math.floor(fraction) if self.staircase else fraction


@registry.register()
class ExponentialDecay(_StaircaseDecay):
    """`initial_learning_rate · decay_rate ^ (step / decay_steps)`.

    Args:
        initial_learning_rate: at step 0.
        decay_steps: steps in which the rate is multiplied once; None: the whole training.
        decay_rate: the factor.
        staircase: only whole multiples of `decay_steps` count.
        name: kept for Keras's sake.

    Keras counterpart: `ExponentialDecay`.
    """

    def __call__(self, step: int) -> float:
        return float(self.initial_learning_rate * self.decay_rate ** self._fraction(step))


@registry.register()
class InverseTimeDecay(_StaircaseDecay):
    """`initial_learning_rate / (1 + decay_rate · step / decay_steps)`; arguments as in `ExponentialDecay`.

    Keras counterpart: `InverseTimeDecay`.
    """

    def __call__(self, step: int) -> float:
        return self.initial_learning_rate / (1.0 + self.decay_rate * self._fraction(step))


@registry.register()
class PolynomialDecay(_Decay):
    """From `initial_learning_rate` to `end_learning_rate` along `(1 - step / decay_steps) ^ power`.

    Args:
        initial_learning_rate: at step 0.
        decay_steps: steps to the end rate; None: the whole training.
        end_learning_rate: the rate that stays.
        power: 1 is a line.
        cycle: beyond the end, stretch to the next multiple of `decay_steps` instead of staying.
        name: kept for Keras's sake.

    Keras counterpart: `PolynomialDecay`.
    """

    def __init__(self, initial_learning_rate: float, decay_steps: float | None = None, end_learning_rate: float = 0.0001,
                 power: float = 1.0, cycle: bool = False, name: str | None = None) -> None:
        super().__init__(initial_learning_rate, decay_steps, name)
        self.end_learning_rate = check_rate("PolynomialDecay(end_learning_rate)", end_learning_rate)
        self.power = check_number("PolynomialDecay(power)", power, 0.0)
        self.cycle = cycle

    def __call__(self, step: int) -> float:
        span = self._span(self.decay_steps)
        if self.cycle:
            span *= max(1, math.ceil(step / span))
        p = min(step / span, 1.0)
        fall = self.initial_learning_rate - self.end_learning_rate
        return float(fall * (1.0 - p) ** self.power + self.end_learning_rate)


@registry.register()
class CosineDecay(_Decay):
    """Half a cosine from `initial_learning_rate` to `alpha` of it, after an optional linear warm-up.

    Args:
        initial_learning_rate: at step 0.
        decay_steps: steps of the cosine, the warm-up not counted; None: what the warm-up leaves of the training.
        alpha: the final rate as a fraction of the peak.
        name: kept for Keras's sake.
        warmup_target: peak at the end of the warm-up; None: no warm-up.
        warmup_steps: its length.

    Keras counterpart: `CosineDecay`. Paper: Loshchilov & Hutter, arXiv 1608.03983.
    """

    def __init__(self, initial_learning_rate: float, decay_steps: float | None = None, alpha: float = 0.0,
                 name: str | None = None, warmup_target: float | None = None, warmup_steps: float = 0) -> None:
        super().__init__(initial_learning_rate, decay_steps, name)
        self.alpha = check_number("CosineDecay(alpha)", alpha, 0.0)
        self.warmup_target = None if warmup_target is None else check_rate("CosineDecay(warmup_target)", warmup_target)
        self.warmup_steps = check_steps("CosineDecay(warmup_steps)", warmup_steps, minimum=0) or 0

    def __call__(self, step: int) -> float:
        peak, warm = self.initial_learning_rate, 0.0
        if self.warmup_target is not None:
            peak, warm = self.warmup_target, self.warmup_steps
            if step < warm:
                return self.initial_learning_rate + (peak - self.initial_learning_rate) * step / warm
        span = self.decay_steps if self.decay_steps is not None else self._span(None) - warm
        return peak * half_cosine(min((step - warm) / span, 1.0) if span > 0 else 1.0, self.alpha)


@registry.register()
class CosineDecayRestarts(LearningRateSchedule):
    """Cosines one after the other, each `t_mul` times as long and `m_mul` times as high as the one before.

    Args:
        initial_learning_rate: at step 0.
        first_decay_steps: length of the first cosine; None: the whole training, so that there is one.
        t_mul: growth of the length, from 1.
        m_mul: growth of the height.
        alpha: the lowest rate as a fraction of `initial_learning_rate`.
        name: kept for Keras's sake.

    Keras counterpart: `CosineDecayRestarts`, which finds the restart by a float32 logarithm and so may be one step late.
    Paper: SGDR, arXiv 1608.03983.
    """

    def __init__(self, initial_learning_rate: float, first_decay_steps: float | None = None, t_mul: float = 2.0,
                 m_mul: float = 1.0, alpha: float = 0.0, name: str | None = None) -> None:
        self.initial_learning_rate = check_rate("CosineDecayRestarts(initial_learning_rate)", initial_learning_rate)
        self.first_decay_steps = check_steps("CosineDecayRestarts(first_decay_steps)", first_decay_steps)
        self.t_mul = check_number("CosineDecayRestarts(t_mul)", t_mul, 1.0)
        self.m_mul = check_number("CosineDecayRestarts(m_mul)", m_mul, 0.0)
        self.alpha = check_number("CosineDecayRestarts(alpha)", alpha, 0.0)
        self.name = name or "SGDRDecay"

    def __call__(self, step: int) -> float:
        period, start, restarts = float(self._span(self.first_decay_steps)), 0.0, 0
        if self.t_mul == 1.0:
            restarts = int(step // period)
            start = restarts * period
        else:
            while step >= start + period:
                start, period, restarts = start + period, period * self.t_mul, restarts + 1
        height = self.m_mul**restarts
        decayed = 0.5 * height * (1.0 + math.cos(math.pi * (step - start) / period))
        return float(self.initial_learning_rate * ((1.0 - self.alpha) * decayed + self.alpha))


@registry.register()
class PiecewiseConstantDecay(LearningRateSchedule):
    """`values[i]` up to and including step `boundaries[i]`, then the next; the last value stays.

    Keras counterpart: `PiecewiseConstantDecay`. PyTorch counterpart: `MultiStepLR`.
    """

    def __init__(self, boundaries: Sequence[float], values: Sequence[float], name: str | None = None) -> None:
        if len(boundaries) != len(values) - 1:
            raise ArgumentError(explain("PiecewiseConstantDecay(boundaries, values)", f"{len(boundaries)} and {len(values)}",
                                        "one value more than boundaries"))
        if any(b <= a for a, b in zip(boundaries, list(boundaries)[1:], strict=False)):
            raise ArgumentError(explain("PiecewiseConstantDecay(boundaries)", repr(list(boundaries)), "increasing step numbers"))
        self.boundaries = list(boundaries)
        self.values = [check_rate("PiecewiseConstantDecay(values)", value) for value in values]
        self.name = name or "PiecewiseConstant"

    def __call__(self, step: int) -> float:
        return self.values[bisect_left(self.boundaries, step)]


@registry.register("step")
class StepDecay(LearningRateSchedule):
    """`initial_learning_rate · gamma ^ (step // step_size)`.

    Args:
        initial_learning_rate: at step 0.
        step_size: steps between two falls; None: a third of the training.
        gamma: the factor of a fall.

    PyTorch counterpart: `StepLR`.
    """

    def __init__(self, initial_learning_rate: float, step_size: float | None = None, gamma: float = 0.1) -> None:
        self.initial_learning_rate = check_rate("StepDecay(initial_learning_rate)", initial_learning_rate)
        self.step_size = check_steps("StepDecay(step_size)", step_size)
        self.gamma = check_number("StepDecay(gamma)", gamma, 0.0)

    def __call__(self, step: int) -> float:
        size = self.step_size if self.step_size is not None else max(1, math.ceil(self._span(None) / 3))
        return float(self.initial_learning_rate * self.gamma ** int(step // size))
