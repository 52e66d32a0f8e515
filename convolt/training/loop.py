"""The loops of training and evaluation, top to bottom. The host waits for the device only where it says SYNC."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from convolt.data.batches import Batch, Resident, Streamed
from convolt.errors import DataError, explain
from convolt.modes import evaluating
from convolt.training.checkpoint.capture import VALIDATION, Cursor
from convolt.training.checkpoint.keeper import Keeper
from convolt.training.checkpoint.signals import StopAtOnce
from convolt.training.hooks import CallbackList, LazyLogs, scalars
from convolt.training.planning import Runner
from convolt.training.progress import Progress


@dataclass
class Schedule:
    """Which epochs run and when validation does.

    Attributes:
        first: number of the first epoch, from 0.
        last: number of epochs in all.
        validate_every: epochs between validations.
    """

    first: int
    last: int
    validate_every: int = 1


def train(model: Any, step: Runner, data: Resident | Streamed, validation: Resident | Streamed | None, schedule: Schedule,
          callbacks: CallbackList, progress: Progress, extra_logs: Callable[[], dict[str, float]], keeper: Keeper | None = None) -> None:
    """Runs the epochs; ends early when a callback sets `model.stop_training`, or on Ctrl-C.

    Args:
        model: the module; its `stop_training` is looked at after each batch and epoch.
        step: what happens to a batch.
        data, validation: batches on the device.
        schedule: which epochs.
        callbacks: hooks of the user.
        progress: the line on the terminal.
        extra_logs: values added to the logs at the end of an epoch, such as the learning rate.
        keeper: saves the state, and says where to begin; None: from the start, saving nothing.
    """
    keeper = keeper or Keeper()
    model.stop_training = False
    callbacks.on_train_begin()
    logs: dict[str, Any] = {}
    try:
        start = keeper.start(schedule.first)
        if start.within:  # what this hook does to callbacks and optimizer is then replaced by the saved state
            callbacks.on_epoch_begin(start.epoch)
        keeper.restore()
        for epoch in range(start.epoch, schedule.last):
            if model.stop_training:
                break
            at = start if epoch == start.epoch else Cursor(epoch)
            progress.epoch_begin(epoch, at.batch, at.seen)
            if not at.within:
                callbacks.on_epoch_begin(epoch)
            model.train()
            at, logs = train_epoch(model, step, data, at, callbacks, progress, keeper)
            keeper.look(logs, at)
            if validation is not None and (epoch + 1) % schedule.validate_every == 0:
                keeper.validation_begin(at)
                progress.validation_begin(validation.steps, at.seen)
                results = evaluate(model, step, validation, callbacks, progress, keeper)
                logs |= {f"val_{name}": value for name, value in results.items()}
            logs |= extra_logs()
            callbacks.on_epoch_end(epoch, logs)
            progress.epoch_end(scalars(logs), at.seen)
            keeper.epoch_done(epoch, logs, epoch + 1 == schedule.last or model.stop_training)
    except StopAtOnce:
        raise
    except KeyboardInterrupt:
        model.stop_training = True
        progress.note(keeper.stop_note())
    finally:
        progress.close()
        model.eval()
    callbacks.on_train_end(logs)


def train_epoch(model: Any, step: Runner, data: Resident | Streamed, at: Cursor, callbacks: CallbackList, progress: Progress,
                keeper: Keeper) -> tuple[Cursor, dict[str, Any]]:
    """Runs the steps of an epoch from a place in it on; returns the place before validation, and the losses and metrics."""
    if at.phase == VALIDATION:
        return at, {name: np.asarray(value, np.float32) if isinstance(value, list) else value for name, value in (at.logs or {}).items()}
    hooks = callbacks.listens("on_train_batch_begin", "on_train_batch_end")
    if not at.within:
        step.train_totals.reset()
    step.begin_epoch()
    done, seen = at.batch, at.seen
    for batches in executions(keeper.batches(data, at), lambda: step.together, done):  # a plan may choose it after the first step
        if hooks:
            callbacks.on_train_batch_begin(done)
        step.train_together(batches)
        done, seen = done + len(batches), seen + sum(batch.size for batch in batches)
        if hooks:
            callbacks.on_train_batch_end(done - 1, LazyLogs(step.train_totals.read))  # SYNC only if a callback looks
            if model.stop_training:
                break
        if progress.wants_update():
            values = scalars(step.train_totals.read())  # SYNC: about four times a second
            progress.update(done, seen, values)
            keeper.look(values, Cursor(at.epoch, done, seen))
        keeper.step_done(at.epoch, done, seen)
    if not seen:
        raise DataError(explain(f"training data in epoch {at.epoch + 1}", "no batches", "at least one",
                                "A generator that has ended cannot be used again; give fit a re-iterable or steps_per_epoch."))
    logs = step.train_totals.read()  # SYNC: the end of an epoch
    return Cursor(at.epoch, done, seen, VALIDATION, dict(logs)), logs


def executions(batches: Iterable[Batch], together: Callable[[], int], done: int = 0) -> Iterator[list[Batch]]:
    """Yields the batches in groups of `together()`, between which callbacks are called; the last one may be smaller.

    Groups end at multiples of that number, also where `done` batches of the epoch were before or the number has changed.
    """
    left = iter(batches)
    while group := list(itertools.islice(left, (size := together()) - done % size)):
        done += len(group)
        yield group


def evaluate(model: Any, step: Runner, data: Resident | Streamed, callbacks: CallbackList,
             progress: Progress | None = None, keeper: Keeper | None = None) -> dict[str, Any]:
    """Returns the loss and the metrics over all of `data`; the model is left in the mode that it had."""
    with evaluating(model):
        return _evaluate(step, data, callbacks, progress, keeper)


def _evaluate(step: Runner, data: Resident | Streamed, callbacks: CallbackList, progress: Progress | None,
              keeper: Keeper | None) -> dict[str, Any]:
    hooks = callbacks.listens("on_test_batch_begin", "on_test_batch_end")
    callbacks.on_test_begin()
    step.test_totals.reset()
    done, seen = 0, 0
    for batches in executions(data.epoch(), lambda: step.together):
        if hooks:
            callbacks.on_test_batch_begin(done)
        for batch in batches:
            step.evaluate(batch.ready())
        done, seen = done + len(batches), seen + sum(batch.size for batch in batches)
        if hooks:
            callbacks.on_test_batch_end(done - 1, LazyLogs(step.test_totals.read))  # SYNC only if a callback looks
        if progress is not None and progress.wants_update():
            progress.update(done, seen, scalars(step.test_totals.read()))  # SYNC: about four times a second
        if keeper is not None:
            keeper.poll()
    if not seen:
        raise DataError(explain("evaluation data", "no batches", "at least one"))
    logs = step.test_totals.read()  # SYNC: the end
    callbacks.on_test_end(logs)
    return logs
