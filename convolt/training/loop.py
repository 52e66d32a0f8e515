"""The loops of training and evaluation, top to bottom. The host waits for the device only where it says SYNC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from convolt.compiler.execute import CapturedStep
from convolt.data.batches import Resident, Streamed
from convolt.errors import DataError, explain
from convolt.training.hooks import CallbackList, LazyLogs, scalars
from convolt.training.progress import Progress
from convolt.training.step import Step


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


def train(model: Any, step: Step | CapturedStep, data: Resident | Streamed, validation: Resident | Streamed | None, schedule: Schedule,
          callbacks: CallbackList, progress: Progress, extra_logs: Callable[[], dict[str, float]]) -> None:
    """Runs the epochs; ends early when a callback sets `model.stop_training`, or on Ctrl-C.

    Args:
        model: the module; its `stop_training` is looked at after each batch and epoch.
        step: what happens to a batch.
        data, validation: batches on the device.
        schedule: which epochs.
        callbacks: hooks of the user.
        progress: the line on the terminal.
        extra_logs: values added to the logs at the end of an epoch, such as the learning rate.
    """
    model.stop_training = False
    callbacks.on_train_begin()
    logs: dict[str, Any] = {}
    try:
        for epoch in range(schedule.first, schedule.last):
            progress.epoch_begin(epoch)
            callbacks.on_epoch_begin(epoch)
            model.train()
            seen = train_epoch(model, step, data, epoch, callbacks, progress)
            if not seen:
                raise DataError(explain(f"training data in epoch {epoch + 1}", "no batches", "at least one",
                                        "A generator that has ended cannot be used again; give fit a re-iterable or steps_per_epoch."))
            logs = step.train_totals.read()  # SYNC: the end of an epoch
            if validation is not None and (epoch + 1) % schedule.validate_every == 0:
                progress.validation_begin(validation.steps, seen)
                logs |= {f"val_{name}": value for name, value in evaluate(model, step, validation, callbacks, progress).items()}
            logs |= extra_logs()
            callbacks.on_epoch_end(epoch, logs)
            progress.epoch_end(scalars(logs), seen)
            if model.stop_training:
                break
    except KeyboardInterrupt:
        model.stop_training = True
        progress.note("Stopped by Ctrl-C: the model keeps its present weights, and the history so far is returned.")
    finally:
        progress.close()
        model.eval()
    callbacks.on_train_end(logs)


def train_epoch(model: Any, step: Step | CapturedStep, data: Resident | Streamed, epoch: int, callbacks: CallbackList,
                progress: Progress) -> int:
    """Runs the steps of one epoch and returns the number of samples seen."""
    hooks = callbacks.listens("on_train_batch_begin", "on_train_batch_end")
    step.train_totals.reset()
    seen = 0
    for index, batch in enumerate(data.epoch(epoch)):
        if hooks:
            callbacks.on_train_batch_begin(index)
        step.train(batch)
        seen += batch.size
        if hooks:
            callbacks.on_train_batch_end(index, LazyLogs(step.train_totals.read))  # SYNC only if a callback looks
            if model.stop_training:
                break
        if progress.wants_update():
            progress.update(index + 1, seen, scalars(step.train_totals.read()))  # SYNC: about four times a second
    return seen


def evaluate(model: Any, step: Step | CapturedStep, data: Resident | Streamed, callbacks: CallbackList,
             progress: Progress | None = None) -> dict[str, Any]:
    """Returns the loss and the metrics over all of `data`; the model is left in the mode that it had."""
    hooks = callbacks.listens("on_test_batch_begin", "on_test_batch_end")
    was_training = model.training
    model.eval()
    callbacks.on_test_begin()
    step.test_totals.reset()
    seen = 0
    for index, batch in enumerate(data.epoch()):
        if hooks:
            callbacks.on_test_batch_begin(index)
        step.evaluate(batch)
        seen += batch.size
        if hooks:
            callbacks.on_test_batch_end(index, LazyLogs(step.test_totals.read))  # SYNC only if a callback looks
        if progress is not None and progress.wants_update():
            progress.update(index + 1, seen, scalars(step.test_totals.read()))  # SYNC: about four times a second
    if not seen:
        raise DataError(explain("evaluation data", "no batches", "at least one"))
    logs = step.test_totals.read()  # SYNC: the end
    callbacks.on_test_end(logs)
    model.train(was_training)
    return logs
