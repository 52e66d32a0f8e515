"""`lr_find`: which learning rate a training can begin with, found by trying all of them on a few batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convolt.errors import ArgumentError, explain
from convolt.schedules import LearningRateSchedule
from convolt.training.checkpoint.capture import Live
from convolt.training.hooks import CallbackList
from convolt.training.inputs import channels_of
from convolt.training.sampling import make_drawing

WIDTH = 0.02
"""Standard deviation, as a share of all steps, of the bell by which losses are smoothed. fastai and Lightning take a running mean,
which lags behind: what it says about a rate belongs to a rate several times lower."""
MEMORY = 0.9
"""Share of the running mean that stays with each new loss; it decides when the search ends."""
EXPLODED = 4.0
"""A mean so many times the lowest ends the search, as in fastai and Lightning."""


@dataclass(frozen=True)
class RateSearch:
    """What a search for a learning rate found.

    Attributes:
        rates: of the steps.
        losses: of each step's batch, at the weights before its update.
        smoothed: means of the losses around each.
        suggestion: a good highest rate: half way, by factors, between where the loss begins to fall and where it is lowest. None
            where it never fell. fastai's `valley` has the same purpose.
        steepest: the rate at which the loss falls fastest, as Lightning suggests; None as above.
        lowest: the rate of the lowest loss, which is too high to train with.
        exploded: whether the search ended early because the loss grew too far.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    suggestion: float | None
    steepest: float | None
    lowest: float | None
    exploded: bool

    def plot(self, path: str | PathLike[str]) -> None:
        """Draws the losses over the rates, with the suggestion, as a PNG."""
        from convolt.training.plots import plot_rates

        plot_rates(self.rates, self.losses, self.smoothed, {"suggestion": self.suggestion, "steepest": self.steepest}, path)

    def describe(self) -> str:
        """Returns the result in a sentence or two."""
        tried = f"{len(self.rates)} rates from {self.rates[0]:.2g} to {self.rates[-1]:.2g}"
        ended = "; beyond, the loss explodes" if self.exploded else ""
        if self.suggestion is None:
            return f"No suggestion: the loss never fell over {tried}{ended}. Look at the data, or try other rates."
        marks = f"steepest at {self.steepest:.2g}, lowest at {self.lowest:.2g}"
        return f"Suggested learning rate: {self.suggestion:.2g} ({tried}{ended}; {marks})"

    def as_json(self) -> dict[str, Any]:
        """Returns the attributes as JSON values; a loss that is not finite is None."""
        losses = [value if math.isfinite(value) else None for value in self.losses.tolist()]
        return {"suggestion": self.suggestion, "steepest": self.steepest, "lowest": self.lowest, "exploded": self.exploded,
                "rates": self.rates.tolist(), "losses": losses}

    def __str__(self) -> str:
        return self.describe()


class _Range(LearningRateSchedule):
    """From `start` to `end`, by equal factors, in `steps` steps after step `first`."""

    def __init__(self, start: float, end: float, steps: int, first: int) -> None:
        self.start, self.end, self.steps, self.first = start, end, steps, first

    def __call__(self, step: int) -> float:
        share: float = (step - self.first) / (self.steps - 1)
        return float(self.start * (self.end / self.start) ** share)


def find_rate(trainer: Any, x: Any, y: Any, *, batch_size: int | None = None, start: float = 1e-7, end: float = 10.0, steps: int = 100,
              sample_weight: Any = None, class_weight: Any = None, augment: Any = None, sampler: Any = None, seed: int = 0) -> RateSearch:
    """Searches with the model and settings of a trainer, and leaves no trace; see `Model.lr_find`."""
    if not (math.isfinite(end) and 0 < start < end):
        raise ArgumentError(explain("lr_find(start, end)", f"{start} and {end}", "two rates with 0 < start < end"))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 10:
        raise ArgumentError(explain("lr_find(steps)", repr(steps), "a whole number from 10"))
    if isinstance(x, Iterator):
        raise ArgumentError(explain("lr_find(x)", "a generator, whose batches would be used up", "data that can be read again",
                                    "Give arrays, a Dataset, a DataLoader, or an object whose __iter__ starts an epoch."))
    drawing = make_drawing(seed, True, sampler, augment, channels_of(x))
    data, _ = trainer._data("fit", trainer._given("fit", x), y, sample_weight, batch_size, None, drawing, class_weight)
    step = trainer._ready_step(bind=True)
    with trainer.computing(training=True), _untouched(trainer, step, getattr(data, "generators", ())):
        optimizer = trainer.optimizer
        inner = getattr(optimizer, "innermost", optimizer)
        before, inner._schedule = inner._schedule, _Range(start, end, steps, optimizer.steps)
        try:
            optimizer.resolve(optimizer.steps + steps)  # for wrappers that begin after a share of the training
            trainer._first_plan(step, data, None)
            rates, losses, exploded = _try_rates(trainer, step, data, steps)
        finally:
            inner._schedule = before
            trainer.end_training()
    return judge(rates, losses, exploded)


def _try_rates(trainer: Any, step: Any, data: Any, steps: int) -> tuple[list[float], list[float], bool]:
    """Trains with one rate after the other; returns rates, losses, and whether they exploded."""
    runner = trainer._runner(step, data, max(1, -(-steps // data.steps)) if data.steps else 1)
    batches = (batch for epoch in itertools.count() for batch in data.epoch(epoch))
    rates: list[float] = []
    losses: list[float] = []
    lowest = mean = 0.0
    trainer.model.train()
    for batch in itertools.islice(batches, steps):
        step.train_totals.reset()
        rates.append(float(trainer.optimizer.lr))
        runner.train(batch)
        losses.append(step.train_totals.read()["loss"])  # SYNC: whether to go on depends on it
        mean = MEMORY * mean + (1 - MEMORY) * losses[-1]
        smooth = mean / (1 - MEMORY ** len(losses))
        lowest = smooth if len(losses) == 1 else min(lowest, smooth)
        if not math.isfinite(losses[-1]) or (len(losses) > 1 and smooth > EXPLODED * abs(lowest) + 1e-12):
            return rates, losses, True
    return rates, losses, False


@contextmanager
def _untouched(trainer: Any, step: Any, generators: Any) -> Iterator[None]:
    """Whatever a training changes is afterwards, bit for bit, what it was before."""
    model, optimizer = trainer.model, trainer.optimizer
    live = Live(model, optimizer, step.train_totals, CallbackList(None, model, {}), generators)
    random = {name: state.clone() for name, state in live.random().items()}
    tensors, state = live.capture()
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    plan, form = trainer.plan, step.module
    try:
        yield
    finally:
        optimizer.zero_grad()
        live.restore(tensors, state)
        live.set_random(random)
        for module, training in modes.items():
            module.training = training
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        trainer.plan, step.module = plan, form


def judge(rates: list[float], losses: list[float], exploded: bool) -> RateSearch:
    """Returns what rates and their losses say; the exploded end counts for nothing."""
    means = smoothed(losses)
    noise = np.asarray(losses) - means
    kept = means[: len(means) - 1 if exploded else None]
    found = valley(kept, float(np.nanstd(noise[: max(int(kept.argmin()), 1)]))) if len(kept) >= 3 else None
    suggestion = steepest = lowest = None
    if found is not None:
        begin, end = found
        slope = np.gradient(kept, np.log(rates[: len(kept)]))
        suggestion, lowest = rates[(begin + end) // 2], rates[end]
        steepest = rates[begin + int(slope[begin : end + 1].argmin())]
    return RateSearch(np.asarray(rates), np.asarray(losses), means, suggestion, steepest, lowest, exploded)


def smoothed(losses: list[float]) -> NDArray[np.float64]:
    """Returns the means of the losses around each, weighted by a bell; those that are not finite have no weight."""
    values = np.asarray(losses, dtype=float)
    places = np.arange(len(values))
    bell = np.exp(-0.5 * ((places[:, None] - places) / max(WIDTH * len(values), 0.5)) ** 2)
    there = np.isfinite(values)
    return np.asarray(bell @ np.where(there, values, 0.0) / (bell @ there))


def valley(losses: NDArray[np.float64], noise: float) -> tuple[int, int] | None:
    """Returns where the losses begin to fall for good (a tenth of the fall is behind), and where they are lowest.

    Args:
        losses: smoothed.
        noise: standard deviation of single losses; a fall of less is none, and None is returned.
    """
    top = float(losses[: max(len(losses) // 10, 1)].mean())
    end = int(losses.argmin())
    fall = top - float(losses[end])
    if end == 0 or not fall > noise:
        return None
    half = int(np.flatnonzero(losses <= top - 0.5 * fall)[0])  # what goes up again later is noise
    return int(np.flatnonzero(losses[: half + 1] >= top - 0.1 * fall)[-1]) if losses[0] >= top - 0.1 * fall else 0, end


__all__ = ["RateSearch", "find_rate", "judge", "smoothed", "valley"]
