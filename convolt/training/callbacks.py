"""The callbacks, with Keras's names and meanings; public as `convolt.callbacks`."""

from __future__ import annotations

import csv
import inspect
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convolt.configurable import to_json
from convolt.data.left_out import BadFile
from convolt.errors import (
    ArgumentError,
    ArgumentTypeError,
    MissingFeatureError,
    MissingPackageError,
    NonFiniteError,
    did_you_mean,
    explain,
)
from convolt.training.hooks import HOOKS, Callback, CallbackList, LazyLogs, Logs, scalars
from convolt.training.monitors import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau

__all__ = [
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "LazyLogs",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "TensorBoard",
    "TerminateOnNaN",
]


class History(Callback):
    """The values of each epoch; `fit` returns one.

    Attributes:
        history: name → list of values, one for each epoch (`loss`, metrics, `val_…`, `learning_rate`).
        epoch: numbers of the epochs, from 0.
        skipped: files of training and validation that could not be read and were left out, each with `path` and `reason`.

    Keras counterpart: `keras.callbacks.History`.
    """

    def __init__(self) -> None:
        self.skipped: list[BadFile] = []
        self.history: dict[str, list[Any]] = {}
        self.epoch: list[int] = []

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.epoch = []

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)

    def state_dict(self) -> dict[str, Any]:
        """Returns the values and the epochs so far."""
        return {"history": to_json(self.history), "epoch": list(self.epoch)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the values and the epochs so far."""
        self.history = {name: list(values) for name, values in state["history"].items()}
        self.epoch = list(state["epoch"])


class LambdaCallback(Callback):
    """A callback made of functions.

    Args:
        hooks: functions by the name of their hook, `on_epoch_end=lambda epoch, logs: print(logs["loss"])`. They take what
            the hook takes.

    Raises:
        ArgumentTypeError: there is no such hook, or its value is no function.

    Keras counterpart: `keras.callbacks.LambdaCallback`.
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        known = (*HOOKS, "on_batch_begin", "on_batch_end")
        for name, function in hooks.items():
            if name not in known:
                raise ArgumentTypeError(explain("LambdaCallback(...)", f"the unknown hook {name!r}", "names of hooks",
                                                did_you_mean(name, known)))
            if function is not None and not callable(function):
                raise ArgumentTypeError(explain(f"LambdaCallback({name})", repr(function), "a function"))
            if function is not None:
                setattr(self, name, function)


class LearningRateScheduler(Callback):
    """Sets the learning rate before each epoch.

    Args:
        schedule: `schedule(epoch, learning_rate)` or `schedule(epoch)` returns the new learning rate; epochs count from 0.
        verbose: 1 prints a line at each epoch.

    Keras counterpart: `keras.callbacks.LearningRateScheduler`.
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        if not callable(schedule):
            raise ArgumentTypeError(explain("LearningRateScheduler(schedule)", repr(schedule),
                                            "a function of (epoch, learning_rate)"))
        self.schedule = schedule
        self.verbose = verbose
        self._takes_rate = _takes_two(schedule)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        optimizer = self.model.optimizer
        rate = self.schedule(epoch, float(optimizer.learning_rate)) if self._takes_rate else self.schedule(epoch)
        try:
            value = float(rate)
        except (TypeError, ValueError) as error:
            raise ArgumentError(explain(f"schedule({epoch}, …)", repr(rate), "a learning rate as a float")) from error
        if not math.isfinite(value) or value < 0:
            raise ArgumentError(explain(f"schedule({epoch}, …)", repr(rate), "a finite learning rate from 0"))
        optimizer.learning_rate = value
        if self.verbose > 0:
            print(f"Epoch {epoch + 1}: LearningRateScheduler setting learning rate to {value}.")

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if isinstance(logs, dict):
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with two arguments in order; one without a signature is taken to do so."""
    try:
        inspect.signature(function).bind(0, 0.0)
    except TypeError:
        return False
    except ValueError:  # some built-in functions have no signature
        return True
    return True


class TerminateOnNaN(Callback):
    """Stops training when the loss is NaN or infinite.

    Args:
        raise_error: whether that is an error in place of a line and a stop.
        check_every: batches from one look to the next; 1 is Keras's behaviour.

    Each look makes the host wait for the device. The loss in the logs is the mean since the epoch began, and once it has
    taken in a NaN it never gets finite again in that epoch: looking rarely misses nothing and finds it at most
    `check_every` batches late. So it looks every 100 batches and at the end of each epoch.
    Keras counterpart: `keras.callbacks.TerminateOnNaN`.
    """

    def __init__(self, raise_error: bool = False, check_every: int = 100) -> None:
        if isinstance(check_every, bool) or not isinstance(check_every, int) or check_every < 1:
            raise ArgumentError(explain("TerminateOnNaN(check_every)", repr(check_every), "a number of batches from 1"))
        self.raise_error = raise_error
        self.check_every = check_every
        self._batch = 0

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._batch = batch
        if (batch + 1) % self.check_every == 0:
            self._check(logs, f"Batch {batch}")

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if not self.model.stop_training:
            self._check(logs, f"Epoch {epoch + 1}")

    def _check(self, logs: Logs | None, where: str) -> None:
        loss = (logs or {}).get("loss")
        if loss is None or math.isfinite(loss):
            return
        if self.raise_error:
            raise NonFiniteError(explain(f"{where}, loss", str(loss), "a finite number"))
        print(f"{where}: Invalid loss, terminating training")
        self.model.stop_training = True


class CSVLogger(Callback):
    """Writes a row for each epoch to a CSV file: `epoch` (from 0), then the logs by name.

    Args:
        filename: the file; its folder must exist.
        separator: one character between values.
        append: whether rows are added to a file that exists.

    A value that an epoch lacks is `NA`, and one that is an array (a confusion matrix) is written as JSON. Without
    validation in the first epoch there are columns for it all the same, as in Keras, since later epochs may have some.
    Keras counterpart: `keras.callbacks.CSVLogger`.
    """

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False) -> None:
        self.filename = os.fspath(filename)
        self.separator = separator
        self.append = append
        self._columns: list[str] | None = None
        self._length = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Opens the file once, so that a path that cannot be written is an error before the first epoch."""
        self._columns, self._length = None, 0
        try:
            # "a" changes nothing yet: rows of a run whose state is loaded after this hook must not be lost.
            with open(self.filename, "a+", newline="", encoding="utf-8") as file:
                file.seek(0)
                header = next(csv.reader([file.readline()], delimiter=self.separator), []) if self.append else []
        except OSError as error:
            raise ArgumentError(explain("CSVLogger(filename)", repr(self.filename), "a file that can be written",
                                        f"{error.strerror}.")) from error
        if header:
            self._columns, self._length = header, os.path.getsize(self.filename)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        row = {name: value if np.ndim(value) == 0 else json.dumps(to_json(value)) for name, value in (logs or {}).items()}
        columns = self._columns or ["epoch", *_columns(row)]
        with open(self.filename, "a", newline="", encoding="utf-8") as file:
            file.truncate(self._length)
            writer = csv.DictWriter(file, columns, restval="NA", extrasaction="ignore", delimiter=self.separator, lineterminator="\n")
            if self._columns is None:
                writer.writeheader()
            writer.writerow({"epoch": epoch, **row})
        self._columns, self._length = columns, os.path.getsize(self.filename)

    def state_dict(self) -> dict[str, Any]:
        """Returns the columns and the file's length; rows written after it are dropped when this state is loaded."""
        return {"_columns": self._columns, "_length": self._length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on behind the last row of the saved state, unless the file has become shorter than that."""
        if os.path.getsize(self.filename) >= state["_length"]:
            self._columns, self._length = state["_columns"], state["_length"]


def _columns(logs: Logs) -> list[str]:
    names = sorted(logs)
    if any(name.startswith("val_") for name in names):
        return names
    return names + [f"val_{name}" for name in names if name != "learning_rate"]


class TensorBoard(Callback):
    """Writes losses, metrics and weight histograms for TensorBoard (`tensorboard --logdir logs`).

    Args:
        log_dir: folder; training goes to `train` in it and validation to `validation`, with Keras's tags (`epoch_loss`).
        histogram_freq: epochs between histograms of the weights; 0: none.
        write_graph: whether the model's layers are written as text.
        write_steps_per_second: whether the speed of each epoch is written.
        update_freq: "epoch", "batch", or a number of batches between looks at the loss (each waits for the device).
        write_images, profile_batch, embeddings_freq, embeddings_metadata: Keras's; only their defaults are known.

    Raises:
        MissingPackageError: the package `tensorboard` is not installed.
        MissingFeatureError: a feature was asked for that Convolt does not have.

    Keras counterpart: `keras.callbacks.TensorBoard`.
    """

    def __init__(self, log_dir: str | os.PathLike[str] = "logs", histogram_freq: int = 0, write_graph: bool = True,
                 write_images: bool = False, write_steps_per_second: bool = False, update_freq: str | int = "epoch",
                 profile_batch: Any = 0, embeddings_freq: int = 0, embeddings_metadata: Any = None) -> None:
        unknown = {"write_images": write_images, "profile_batch": profile_batch, "embeddings_freq": embeddings_freq,
                   "embeddings_metadata": embeddings_metadata}
        for name, value in unknown.items():
            if value:
                raise MissingFeatureError(explain(f"TensorBoard({name})", repr(value), "its default",
                                                  "Convolt does not have this part of it."))
        if update_freq not in ("epoch", "batch") and (isinstance(update_freq, (str, bool)) or update_freq < 1):
            raise ArgumentError(explain("TensorBoard(update_freq)", repr(update_freq),
                                        "'epoch', 'batch' or a number of batches from 1"))
        self.log_dir = os.fspath(log_dir)
        self.histogram_freq = histogram_freq
        self.write_graph = write_graph
        self.write_steps_per_second = write_steps_per_second
        self.update_freq = update_freq
        self._interval = 0 if update_freq == "epoch" else 1 if update_freq == "batch" else int(update_freq)
        self._writers: dict[str, Any] = {}
        self._step = 0
        self._epoch_start = (0, 0.0)

    def wants(self, hook: str) -> bool:
        """Whether `hook` does anything: that of a batch only if batches are written or counted."""
        return super().wants(hook) and (hook != "on_train_batch_end" or self._interval > 0 or self.write_steps_per_second)

    def _writer(self, name: str) -> Any:
        if name not in self._writers:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingPackageError(explain("TensorBoard", "no package 'tensorboard'", "it to be installed",
                                                  "Run: pip install tensorboard")) from error
            self._writers[name] = SummaryWriter(str(Path(self.log_dir) / name))
        return self._writers[name]

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._step = 0
        writer = self._writer("train")
        if self.write_graph:
            writer.add_text("model", f"```\n{self.model!r}\n```", 0)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch_start = (self._step, time.perf_counter())

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._step += 1
        if self._interval and self._step % self._interval == 0:
            for name, value in scalars(logs).items():
                self._writer("train").add_scalar(f"batch_{name}", value, self._step)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        for name, value in scalars(logs).items():
            validation = name.startswith("val_")
            self._writer("validation" if validation else "train").add_scalar(f"epoch_{name.removeprefix('val_')}", value, epoch)
        if self.write_steps_per_second:
            step, start = self._epoch_start
            self._writer("train").add_scalar("epoch_steps_per_second", (self._step - step) / (time.perf_counter() - start), epoch)
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            for name, weight in self.model.named_parameters():
                self._writer("train").add_histogram(name, weight.detach().float().cpu(), epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: Logs | None = None) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of batches written so far."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on counting batches from the saved state."""
        self._step = state["step"]
