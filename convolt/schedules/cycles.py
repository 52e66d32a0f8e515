"""Rates that rise and fall over the whole training."""

from __future__ import annotations

import math

from convolt.errors import ArgumentError, explain
from convolt.schedules.base import LearningRateSchedule, check_number, check_rate, check_steps, half_cosine, registry


@registry.register()
class WarmupCosine(LearningRateSchedule):
    """A line from 0 up to `learning_rate`, then half a cosine down to `alpha` of it; both inside `total_steps`.

    Args:
        learning_rate: the peak.
        total_steps: steps of warm-up and cosine together; None: the whole training.
        warmup: length of the warm-up, below 1 a fraction of `total_steps`, from 1 a number of steps.
        alpha: the final rate as a fraction of the peak.

    Keras counterpart: `CosineDecay(0.0, total - w, alpha, warmup_target=learning_rate, warmup_steps=w)`.
    """

    def __init__(self, learning_rate: float, total_steps: int | None = None, warmup: float = 0.05, alpha: float = 0.0) -> None:
        self.learning_rate = check_rate("WarmupCosine(learning_rate)", learning_rate)
        self.total_steps = check_steps("WarmupCosine(total_steps)", total_steps)
        self.warmup = check_number("WarmupCosine(warmup)", warmup, 0.0)
        self.alpha = check_number("WarmupCosine(alpha)", alpha, 0.0)

    def __call__(self, step: int) -> float:
        total = self._span(self.total_steps)
        warm = self.warmup if self.warmup >= 1 else round(self.warmup * total)
        if step < warm:
            return self.learning_rate * step / warm
        return self.learning_rate * half_cosine(min((step - warm) / (total - warm), 1.0) if total > warm else 1.0, self.alpha)


@registry.register()
class OneCycle(LearningRateSchedule):
    """Up from `max_learning_rate / div_factor` to the maximum and down to `1 / final_div_factor` of the first rate.

    Args:
        max_learning_rate: the peak.
        total_steps: length of the cycle; None: the whole training. The last rate stays.
        pct_start: fraction of the cycle that rises.
        anneal_strategy: `"cos"` or `"linear"`.
        div_factor: peak over first rate.
        final_div_factor: first over last rate.
        three_phase: rise, symmetric fall to the first rate, then to the last, instead of rise and fall.

    PyTorch counterpart: `OneCycleLR` (its cycling of momentum is left out). Paper: Smith & Topin, arXiv 1708.07120.
    """

    def __init__(self, max_learning_rate: float, total_steps: int | None = None, pct_start: float = 0.3,
                 anneal_strategy: str = "cos", div_factor: float = 25.0, final_div_factor: float = 1e4,
                 three_phase: bool = False) -> None:
        self.max_learning_rate = check_rate("OneCycle(max_learning_rate)", max_learning_rate)
        self.total_steps = check_steps("OneCycle(total_steps)", total_steps)
        self.pct_start = check_number("OneCycle(pct_start)", pct_start, 0.0, 1.0)
        if anneal_strategy not in ("cos", "linear"):
            raise ArgumentError(explain("OneCycle(anneal_strategy)", repr(anneal_strategy), "'cos' or 'linear'"))
        self.anneal_strategy = anneal_strategy
        self.div_factor = check_number("OneCycle(div_factor)", div_factor, 1.0)
        self.final_div_factor = check_number("OneCycle(final_div_factor)", final_div_factor, 1.0)
        self.three_phase = three_phase

    def __call__(self, step: int) -> float:
        total, peak = self._span(self.total_steps), self.max_learning_rate
        first = peak / self.div_factor
        last = first / self.final_div_factor
        rise = self.pct_start * total - 1
        ends = [(rise, first, peak), (total - 1, peak, last)]
        if self.three_phase:
            ends = [(rise, first, peak), (2 * rise, peak, first), (total - 1, first, last)]
        start = 0.0
        for end, low, high in ends:
            if step <= end or end == total - 1:
                fraction = min((step - start) / (end - start), 1.0) if end > start else 1.0
                return self._anneal(low, high, fraction)
            start = end
        return last

    def _anneal(self, start: float, end: float, fraction: float) -> float:
        if self.anneal_strategy == "linear":
            return start + (end - start) * fraction
        return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * fraction))
