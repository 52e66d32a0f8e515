"""Callbacks that watch one value: early stopping, the best checkpoint, a learning rate that falls on a plateau."""

from __future__ import annotations

import os
import string
import warnings
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.configurable import snake_case
from convolt.errors import ArgumentError, ConvoltWarning, did_you_mean, explain
from convolt.training.hooks import Callback, Logs, scalars

_UP = frozenset({"acc", "accuracy", "auc", "correlation", "dice", "f1", "fbeta", "iou", "map", "negatives", "positives",
                 "precision", "r2", "recall", "sensitivity", "similarity", "specificity"})
_DOWN = frozenset({"crossentropy", "divergence", "error", "false", "hinge", "huber", "logcosh", "loss", "mae", "mape", "mse",
                   "msle", "perplexity", "poisson", "rmse"})
"""Words in the names of metrics that are better when higher, and when lower; the second win (`false_positives`)."""


class Monitor(Callback):
    """Base of callbacks that ask whether the value called `monitor` got better.

    Args:
        monitor: a key of the logs, such as `val_loss` or `accuracy`.
        mode: "min", "max", or "auto": losses are better when lower, a metric as its class says, or else its name.
        min_delta: a change smaller than this is none.
        best: the value to beat at first; None: the first value is the best.

    Raises:
        ArgumentError: `mode` is unknown, or "auto" cannot tell which way `monitor` gets better.
    """

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0, best: float | None = None) -> None:
        if mode not in ("auto", "min", "max"):
            raise ArgumentError(explain(f"{type(self).__name__}(mode)", repr(mode), "'auto', 'min' or 'max'",
                                        did_you_mean(str(mode), ("auto", "min", "max"))))
        self.monitor = monitor
        self.mode = mode
        self.min_delta = abs(min_delta)
        self.best = best
        self._higher: bool | None = None
        self._warned = False

    def is_improvement(self, value: float, reference: float | None) -> bool:
        """Whether `value` is better than `reference` by more than `min_delta`; NaN never is."""
        if reference is None:
            return True
        if self._higher is None:
            self._higher = higher_is_better(self)
        return value - self.min_delta > reference if self._higher else value + self.min_delta < reference

    def current(self, logs: Logs | None, otherwise: str) -> float | None:
        """Returns the watched value; where there is none, None, and a warning once that says what happens `otherwise`."""
        value = None if logs is None else logs.get(self.monitor)
        if value is None:
            if not self._warned:
                self._warned = True
                names = list(logs or ())
                fix = did_you_mean(self.monitor, names) if names else "This epoch had no logs."
                if self.monitor.startswith("val_") and not any(name.startswith("val_") for name in names):
                    fix = "Give fit validation_data or validation_split, or watch a training value."
                expected = f"one of the values of this epoch: {', '.join(names)}"
                warnings.warn(explain(f"{type(self).__name__}(monitor)", repr(self.monitor), expected, f"{fix} {otherwise}"),
                              ConvoltWarning, stacklevel=4)
            return None
        if np.ndim(value) > 0:
            raise ArgumentError(explain(f"{type(self).__name__}(monitor)", f"{self.monitor!r} of shape {np.shape(value)}",
                                        f"one number; such are {', '.join(scalars(logs))}"))
        return float(value)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Finds out which way is better, so that a doubt is an error before the first epoch and not after it."""
        self._higher = higher_is_better(self)

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the numbers of `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)


def higher_is_better(callback: Monitor) -> bool:
    """Returns the direction of a monitor: its `mode`, or the metric's own word, or what its name says.

    Raises:
        ArgumentError: none of them tells.
    """
    if callback.mode != "auto":
        return callback.mode == "max"
    name = callback.monitor.removeprefix("val_")
    if name == "loss":
        return False
    for metric in getattr(callback.model, "metrics", None) or []:
        own = (metric.name, f"_{metric.name}")  # with several outputs the name of the output stands before it
        if (name == own[0] or name.endswith(own[1])) and metric.higher_is_better is not None:
            return bool(metric.higher_is_better)
    words = set(snake_case(name).split("_"))
    if words & _DOWN:
        return False
    if words & _UP:
        return True
    raise ArgumentError(explain(f"{type(callback).__name__}(mode)", f"'auto' for monitor={callback.monitor!r}",
                                "a value whose direction is known", "Pass mode='max' if higher is better, else mode='min'."))


class EarlyStopping(Monitor):
    """Stops training when the watched value has not got better for `patience` epochs.

    Args:
        monitor, mode, min_delta: what to watch and what counts as better (see `Monitor`).
        patience: epochs without improvement after which training stops.
        verbose: 1 prints a line when it stops and when weights are restored.
        baseline: a value that must be beaten, or the epoch counts as one without improvement.
        restore_best_weights: whether the weights of the best epoch are put back at the end. They are kept as copies on
            the device, which costs the model's size in memory.
        start_from_epoch: epochs before this one are not looked at.

    Keras counterpart: `keras.callbacks.EarlyStopping`.
    """

    def __init__(self, monitor: str = "val_loss", min_delta: float = 0, patience: int = 0, verbose: int = 0, mode: str = "auto",
                 baseline: float | None = None, restore_best_weights: bool = False, start_from_epoch: int = 0) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.wait = 0
        self.stopped_epoch = 0
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        self.wait = self.stopped_epoch = self.best_epoch = 0
        self.best = self.best_weights = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        current = self.current(logs, "Training will not stop early.")
        if current is None or epoch < self.start_from_epoch:
            return
        if self.restore_best_weights and self.best_weights is None:
            self._keep_weights(epoch)
        self.wait += 1
        if self.is_improvement(current, self.best):
            self.best = current
            self.best_epoch = epoch
            if self.restore_best_weights:
                self._keep_weights(epoch)
            if self.baseline is None or self.is_improvement(current, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.stopped_epoch > 0 and self.verbose > 0:
            print(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self.restore_best_weights and self.best_weights is not None:
            if self.verbose > 0:
                print(f"Restoring model weights from the end of the best epoch: {self.best_epoch + 1}.")
            self.model.load_state_dict(self.best_weights)

    @torch.no_grad()
    def _keep_weights(self, epoch: int) -> None:
        """Copies the weights on their device; the copies are made once and filled again, so memory does not fragment."""
        self.best_epoch = epoch
        state = self.model.state_dict()
        if self.best_weights is None:
            self.best_weights = {name: tensor.detach().clone() for name, tensor in state.items()}
        else:
            for name, tensor in state.items():
                self.best_weights[name].copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        """Returns the counters and the best value."""
        return {"best": self.best, "wait": self.wait, "best_epoch": self.best_epoch, "stopped_epoch": self.stopped_epoch}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the best weights."""
        return {f"best_weights.{name}": tensor for name, tensor in (self.best_weights or {}).items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up the best weights, each on the device of the model's own."""
        devices = {name: tensor.device for name, tensor in self.model.state_dict().items()}
        weights = {name.removeprefix("best_weights."): tensor for name, tensor in tensors.items()}
        self.best_weights = {name: tensor.to(devices[name], copy=True) for name, tensor in weights.items()} or None


class ModelCheckpoint(Monitor):
    """Saves the model, or its weights, after each epoch or every so many batches.

    Args:
        filepath: where; `{epoch:02d}`, `{batch}` and names of the logs (`{val_loss:.2f}`) are filled in. Missing folders
            are made. The format is that of `model.save` (or `model.save_weights`) for this ending.
        monitor, mode: what "best" means (see `Monitor`).
        verbose: 1 prints a line for each save.
        save_best_only: whether only an improvement is saved.
        save_weights_only: whether `model.save_weights` is called in place of `model.save`.
        save_freq: "epoch", or a number of batches.
        initial_value_threshold: a value that the first save must beat.

    Raises:
        ArgumentError: an argument cannot be used, the folder cannot be written, or a name in `filepath` is not in the logs.

    Keras counterpart: `keras.callbacks.ModelCheckpoint`.
    """

    def __init__(self, filepath: str | os.PathLike[str], monitor: str = "val_loss", verbose: int = 0,
                 save_best_only: bool = False, save_weights_only: bool = False, mode: str = "auto",
                 save_freq: str | int = "epoch", initial_value_threshold: float | None = None) -> None:
        super().__init__(monitor, mode, best=initial_value_threshold)
        self.filepath = os.fspath(filepath)
        try:
            list(string.Formatter().parse(self.filepath))
        except ValueError as error:
            raise ArgumentError(explain("ModelCheckpoint(filepath)", f"{self.filepath!r} ({error})",
                                        "a path with fields such as {epoch:02d}",
                                        "Write a brace of the name itself twice.")) from error
        if save_freq != "epoch" and (isinstance(save_freq, (str, bool)) or save_freq < 1):
            raise ArgumentError(explain("ModelCheckpoint(save_freq)", save_freq, "'epoch' or a number of batches from 1"))
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = save_freq
        self.batches_since_save = 0
        self._last_batch: int | None = None
        self._epoch = 0

    def wants(self, hook: str) -> bool:
        """Whether `hook` does anything: that of a batch does so only for a `save_freq` in batches."""
        return super().wants(hook) and (hook != "on_train_batch_end" or self.save_freq != "epoch")

    def on_train_begin(self, logs: Logs | None = None) -> None:
        if self.save_best_only:
            super().on_train_begin(logs)
        folder = Path(self.filepath).parent
        if "{" not in str(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ArgumentError(explain("ModelCheckpoint(filepath)", repr(self.filepath), "a path that can be written",
                                            f"{error}.")) from error
            if not os.access(folder, os.W_OK) or Path(self.filepath).is_dir():
                fix = "It is a folder; add a file name." if Path(self.filepath).is_dir() else f"The folder {folder} is read-only."
                raise ArgumentError(explain("ModelCheckpoint(filepath)", repr(self.filepath), "a file that can be written", fix))

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if self.save_freq == "epoch":
            return
        new = batch + 1 if self._last_batch is None or batch <= self._last_batch else batch - self._last_batch
        self.batches_since_save += new
        self._last_batch = batch
        if self.batches_since_save >= int(self.save_freq):
            self.batches_since_save = 0
            self._save(self._epoch, batch, logs or {})

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self.save_freq == "epoch":
            self._save(epoch, None, logs or {})

    def _save(self, epoch: int, batch: int | None, logs: Logs) -> None:
        path = self._path(epoch, batch, logs)
        if self.save_best_only and not self._is_best(epoch, logs, path):
            return
        if not self.save_best_only and self.verbose > 0:
            print(f"Epoch {epoch + 1}: saving model to {path}")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if self.save_weights_only:
            self.model.save_weights(path)
        else:
            self.model.save(path)
        if self.verbose > 0:
            print(f"Epoch {epoch + 1}: finished saving model to {path}")

    def _is_best(self, epoch: int, logs: Logs, path: str) -> bool:
        current = self.current(logs, "Each model will be saved.")
        if current is None:
            return True
        improved, best = self.is_improvement(current, self.best), "None" if self.best is None else f"{self.best:.5f}"
        if self.verbose > 0:
            print(f"Epoch {epoch + 1}: {self.monitor} improved from {best} to {current:.5f}, saving model to {path}" if improved
                  else f"Epoch {epoch + 1}: {self.monitor} did not improve from {best}")
        if improved:
            self.best = current
        return improved

    def _path(self, epoch: int, batch: int | None, logs: Logs) -> str:
        """Fills in the fields; logs of a batch are read from the device only if a field asks for them."""
        own: dict[str, Any] = {"epoch": epoch + 1} if batch is None else {"epoch": epoch + 1, "batch": batch + 1}
        try:
            return self.filepath.format_map(ChainMap(own, logs))  # type: ignore[arg-type]  # reads alone
        except KeyError as error:
            names = [*own, *logs]
            raise ArgumentError(explain("ModelCheckpoint(filepath)", f"the field {{{error.args[0]}}} in {self.filepath!r}",
                                        f"fields among {', '.join(names)}", did_you_mean(str(error.args[0]), names))) from error

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value and the count of batches."""
        return {"best": self.best, "batches_since_save": self.batches_since_save, "_last_batch": self._last_batch}


class ReduceLROnPlateau(Monitor):
    """Multiplies the learning rate by `factor` when the watched value has not got better for `patience` epochs.

    Args:
        monitor, mode, min_delta: what to watch and what counts as better (see `Monitor`).
        factor: below 1.
        patience: epochs without improvement before the learning rate falls.
        verbose: 1 prints a line when it falls.
        cooldown: epochs after a fall in which none is counted.
        min_lr: the learning rate never falls below this.

    Keras counterpart: `keras.callbacks.ReduceLROnPlateau`.
    """

    def __init__(self, monitor: str = "val_loss", factor: float = 0.1, patience: int = 10, verbose: int = 0, mode: str = "auto",
                 min_delta: float = 1e-4, cooldown: int = 0, min_lr: float = 0.0) -> None:
        super().__init__(monitor, mode, min_delta)
        if not 0 < factor < 1:
            raise ArgumentError(explain("ReduceLROnPlateau(factor)", factor, "a number above 0 and below 1"))
        self.factor = factor
        self.patience = patience
        self.verbose = verbose
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.cooldown_counter = 0
        self.wait = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        self.best = None
        self.cooldown_counter = self.wait = 0

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if isinstance(logs, dict):
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        current = self.current(logs, "The learning rate will stay.")
        if current is None:
            return
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self.is_improvement(current, self.best):
            self.best = current
            self.wait = 0
        elif self.cooldown_counter == 0:
            self.wait += 1
            if self.wait >= self.patience and self._reduce(epoch):
                self.cooldown_counter = self.cooldown
                self.wait = 0

    def _reduce(self, epoch: int) -> bool:
        old = float(self.model.optimizer.learning_rate)
        if old <= self.min_lr:
            return False
        new = max(old * self.factor, self.min_lr)
        self.model.optimizer.learning_rate = new
        if self.verbose > 0:
            print(f"Epoch {epoch + 1}: ReduceLROnPlateau reducing learning rate to {new}.")
        return True

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value and the counters."""
        return {"best": self.best, "wait": self.wait, "cooldown_counter": self.cooldown_counter}
